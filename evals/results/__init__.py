"""What a run leaves behind: one folder a setting, one line a sample, one summary."""

"""Custom tasks from JSON Lines files."""

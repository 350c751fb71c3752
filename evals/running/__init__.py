"""Run jobs: each model is loaded once, and settings that differ only in method and budget share each prefill."""

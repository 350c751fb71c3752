"""Running jobs: a sweep loads each model once, and settings that differ only in method and budget share each prefill."""

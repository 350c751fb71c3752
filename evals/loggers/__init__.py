"""Loggers send results to a service; the local files remain authoritative (`evals.job.Logger`)."""

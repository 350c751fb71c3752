"""Loggers, which send results to a service. The local files remain authoritative (`evals.job.Logger`)."""

"""Loggers: they send results on to a service; the local files stay the truth (`evals.job.Logger`)."""

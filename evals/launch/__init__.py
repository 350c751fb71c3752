"""Run a sweep in this process, in one process per device, or as array tasks of a SLURM cluster."""

"""Run a sweep in this process, in one process per device, or as array tasks on a SLURM cluster."""

"""Run sweeps on a SLURM cluster: one array task per group of settings that share their prefills."""

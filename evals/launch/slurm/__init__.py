"""Sweeps on a SLURM cluster: one array task a group of settings that share their prefills."""

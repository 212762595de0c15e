"""Runs as Slurm jobs: scripts, their submission, what becomes of them."""

"""Flax modules, and the plain functions that hide them from everything else."""

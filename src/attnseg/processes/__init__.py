"""Processes of a run: forks, launched ranks, GPU leases, signals and locks."""

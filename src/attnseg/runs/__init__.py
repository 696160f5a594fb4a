"""Run folders: the only reader and writer of a run."""

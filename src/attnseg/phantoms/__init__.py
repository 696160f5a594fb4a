"""Phantoms: synthetic datasets in the layouts of the real ones."""

"""Experiment trackers, one file each, and the object that feeds them during a run."""

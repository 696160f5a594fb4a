"""Measurements of the cost of training and inference: one file per suite."""

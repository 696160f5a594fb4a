"""Conversion of a trained network to another attention: its weights, and what it teaches."""

"""Metric profiles: named conventions that turn masks into numbers."""

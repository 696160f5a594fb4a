"""Metrics: pure functions, and profiles that say which convention a number follows."""

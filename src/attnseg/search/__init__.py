"""Searches of options by many trials."""

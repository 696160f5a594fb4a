"""Drawings of cases and masks."""

"""Metrics that stand by themselves, one per file; the profile `detailed` has all of them."""

"""Probes: small generated tasks, each of which only one ability of an attention solves."""

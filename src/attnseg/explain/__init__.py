"""Attention maps of finished runs."""

"""Losses as modules that take logits and a target."""

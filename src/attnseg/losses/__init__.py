"""Losses: modules on logits and target."""

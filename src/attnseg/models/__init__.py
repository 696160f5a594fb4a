"""Segmentation models: one self-contained file per paper."""

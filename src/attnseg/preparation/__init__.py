"""Preparation, description and preview of datasets."""

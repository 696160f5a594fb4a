"""Datasets: readers, labels, prepared cases, splits, augmentation and loaders."""

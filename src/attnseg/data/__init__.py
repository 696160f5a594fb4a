"""Datasets: readers, prepared cases, splits, augmentation, loaders, phantoms."""

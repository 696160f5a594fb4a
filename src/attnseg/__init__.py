"""Train and compare attention variants for medical image segmentation."""

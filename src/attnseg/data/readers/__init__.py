"""The readers of datasets, and the decoding of their files."""

"""Multi-head attention in plain PyTorch: one file per way of mixing values."""

"""Building blocks that models share; attention is passed in by the models."""

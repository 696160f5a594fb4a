"""Building blocks that models share; attention comes in from outside."""

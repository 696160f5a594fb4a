"""Comparisons of finished runs: reads run folders, needs neither torch nor the engine."""

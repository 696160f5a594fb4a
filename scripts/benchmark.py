"""Measure cost and speed: `python scripts/benchmark.py suite=step`, or --help for every choice."""

from attnseg.cli import benchmark

if __name__ == "__main__":
    benchmark()

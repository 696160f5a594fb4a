"""Measure loading: `python scripts/benchmark_loading.py dataset=uw_madison dataset.root=DIR`."""

from attnseg.cli import loading

if __name__ == "__main__":
    loading()

"""Compare conventions: `python scripts/metrics_diff.py run=DIR profiles=strict,transunet`."""

from attnseg.cli import metrics_diff

if __name__ == "__main__":
    metrics_diff()

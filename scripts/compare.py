"""Compare finished runs: `python scripts/compare.py runs=[outputs/phantom/setr/*/*]`."""

from attnseg.cli import compare

if __name__ == "__main__":
    compare()

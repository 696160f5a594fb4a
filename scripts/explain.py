"""Draw where a token attends: `python scripts/explain.py run=DIR`, or `runs=[DIR,DIR]`."""

from attnseg.cli import explain

if __name__ == "__main__":
    explain()

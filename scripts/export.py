"""Export a finished run: `python scripts/export.py run=DIR`."""

from attnseg.cli import export

if __name__ == "__main__":
    export()

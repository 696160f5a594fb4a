"""Draw what the network sees: `python scripts/preview.py dataset=synapse augment=strong`."""

from attnseg.cli import preview

if __name__ == "__main__":
    preview()

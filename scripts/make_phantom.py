"""Make a phantom: `python scripts/make_phantom.py dataset=synapse dataset.root=DIR`."""

from attnseg.cli import phantom

if __name__ == "__main__":
    phantom()

"""Check and describe a dataset: `python scripts/prepare.py dataset=synapse dataset.root=DIR`."""

from attnseg.cli import prepare

if __name__ == "__main__":
    prepare()

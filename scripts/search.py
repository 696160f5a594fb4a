"""Search options for the best validation score: `python scripts/search.py search=optimizer`."""

from attnseg.cli import search

if __name__ == "__main__":
    search()

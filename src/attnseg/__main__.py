"""Lets `python -m attnseg` run the command line."""

import sys

from attnseg.cli import main

if __name__ == "__main__":
    sys.argv[0] = "attnseg"  # Run folders record the command, and messages repeat it.
    main()

"""Commands: options, checks and the function that each one runs."""

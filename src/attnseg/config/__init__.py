"""Configuration: types of the options, construction of objects, identity of runs, and cost."""

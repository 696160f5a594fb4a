"""Configuration: its types, what they build, and what it costs."""

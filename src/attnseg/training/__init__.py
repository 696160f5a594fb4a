"""Training runs, from a checked configuration to a complete run folder."""

"""Promises of every model, attention, loss and metric profile, for tests and `attnseg check`."""

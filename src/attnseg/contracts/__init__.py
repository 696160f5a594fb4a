"""Promises that every model, attention and loss keeps, for tests and for `attnseg check`."""

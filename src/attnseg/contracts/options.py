"""Options of the check of a model, an attention, a loss or a metric profile."""

from attnseg.config.training import Config


class Check(Config):
    """A training run, of which model, attention, loss and profile are held to their promises."""

"""Options of the check of a model, an attention or a loss."""

from attnseg.config.training import Config


class Check(Config):
    """A training run, of which model, attention and loss are held to their promises."""

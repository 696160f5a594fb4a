"""Train and compare attention variants for medical image segmentation."""

from typing import Any

from attnseg.system import name_user

__all__ = [
    "compare",
    "create_attention",
    "create_model",
    "evaluate",
    "list_attentions",
    "list_models",
    "load_run",
    "predict",
    "train",
]
name_user()


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the Python interface on first use, so that the command line starts without torch."""
    if name in __all__:
        from attnseg import api

        return getattr(api, name)
    raise AttributeError(f"module 'attnseg' has no attribute {name!r}")

"""Options of the page on which networks are tried."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from attnseg.config.errors import OptionError
from attnseg.config.nodes import CommandOptions, Folder


class View(CommandOptions):
    """Options of `attnseg view`.

    The page is served to this machine only, and only to the browser that opens the printed address.

    Attributes:
        run: a finished run folder, whose network is tried.
        capsule: a capsule, or two side by side.
        predictions: output folder of `attnseg predict`, which is only looked at.
        device: where the network of a run computes.
        threads: of the processor; by default all.
        port: of the address 127.0.0.1; 0 takes a free one.
        idle_minutes: minutes without any use after which the program ends.
        upload_mb: most megabytes that can be dropped at once, unpacked.
    """

    run: Folder | None
    capsule: Folder | Annotated[list[Folder], Field(min_length=1, max_length=2)] | None
    predictions: Folder | None
    device: Literal["cpu", "cuda"]
    threads: PositiveInt | None
    port: Annotated[int, Field(ge=0, le=65535)]
    idle_minutes: PositiveFloat
    upload_mb: PositiveInt

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if sum(each is not None for each in (self.run, self.capsule, self.predictions)) != 1:
            raise OptionError("run", "give one of run=DIR, capsule=FILE and predictions=DIR")
        return self

    @property
    def capsules(self) -> list[str]:
        """The capsules, none if a run or predictions were given."""
        return [self.capsule] if isinstance(self.capsule, str) else list(self.capsule or ())

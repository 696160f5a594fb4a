"""A command: its options, its configuration file, its help, and the function that it runs."""

import pkgutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from attnseg.config.errors import parse_options
from attnseg.progress import loading_note


@dataclass(frozen=True)
class Invocation:
    """One call of a command from the command line.

    Attributes:
        overrides: `KEY=VALUE` each, as Hydra took them.
        on_folder: called with the run folder as soon as there is one.
        report: prints an error and returns its exit code.
        compose: returns the plain configuration of the same command with other overrides.
        call: calls the same command with other overrides and returns the exit code.
    """

    overrides: Sequence[str]
    on_folder: Callable[[Path], None]
    report: Callable[[Exception], int]
    compose: Callable[[Sequence[str]], dict[str, Any]]
    call: Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Command:
    """A command of the table in `cli/main.py`.

    Attributes:
        name: as it is typed after `attnseg`.
        about: docstring of its module: a sentence, and indented examples.
        options: class that the configuration is checked against, before torch is imported.
        run: does the work, given the options; imports torch and the like only when called.
        run_invocation: does it instead, if the work needs to know how it was called.
        config: file in `configs/` that holds the defaults; by default of the command's name.
        part: key of the configuration that holds the options, if it is not all of it.
        translate: turns conveniences of the command line into `KEY=VALUE`.
        conveniences: those of them that are fixed words, for completion.
    """

    name: str
    about: str
    options: type[BaseModel]
    run: Callable[[Any], object] = lambda options: None
    run_invocation: Callable[[Any, Invocation], object] | None = None
    config: str = ""
    part: str = ""
    translate: Callable[[list[str]], list[str]] = list
    conveniences: tuple[str, ...] = ()

    @property
    def config_name(self) -> str:
        """The configuration file without its ending."""
        return self.config or self.name

    @property
    def header(self) -> str:
        """The sentence that says what the command does."""
        return self.about.partition("\n\n")[0]

    @property
    def examples(self) -> str:
        """Command lines, one below the other."""
        return textwrap.dedent(self.about.partition("\n\n")[2]).rstrip()

    def parse(self, raw: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the options of a plain configuration; a `ConfigError` names the first mistake."""
        return parse_options(self.options, raw[self.part] if self.part else raw, self.part)


def deferred(place: str) -> Callable[..., Any]:
    """Return a function that imports another, named as `module:function`, when it is called."""

    def import_and_call(*arguments: object) -> Any:  # noqa: ANN401
        with loading_note():
            function = pkgutil.resolve_name(place)
        return function(*arguments)

    return import_and_call

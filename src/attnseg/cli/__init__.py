"""The command line. `cli.train()` and the like run one command with the arguments of `sys.argv`.

Nothing but the standard library is imported before a command is called, so that an installation
with a missing or broken library can still say so.
"""

import importlib.util
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command that `sys.argv` names."""
    try:
        from attnseg.cli.program import run_program
    except ImportError as error:
        report_broken_installation(error)
    run_program(sys.argv[1:])


def report_broken_installation(error: ImportError) -> NoReturn:
    """Examine the machine if that was asked for, else name the library; exit with 2.

    The exit code is 5 where the library is there, but not the memory to load it.
    """
    from attnseg.doctor.examine import FOLDERS, examine
    from attnseg.memory import lacks_memory

    if sys.argv[1:2] == ["doctor"]:
        sys.exit(examine(FOLDERS, as_json="format=json" in sys.argv) or 2)
    reason = " ".join(str(error).split()) or type(error).__name__
    if lacks_memory(error):
        print(
            f"error: memory: too little to load a library ({reason}); free some, or allow more "
            "with `ulimit -v`",
            file=sys.stderr,
        )
        sys.exit(5)
    print(
        f"error: {error.name or 'installation'}: cannot be imported ({reason}); run "
        "`attnseg doctor` to see what is missing and what to do",
        file=sys.stderr,
    )
    sys.exit(2)


def __getattr__(name: str) -> Callable[[], NoReturn]:
    """Return a command as a function."""
    if importlib.util.find_spec(f"attnseg.commands.{name}") is None:
        raise AttributeError(f"module 'attnseg.cli' has no attribute {name!r}")

    def run_with_arguments() -> NoReturn:
        from attnseg.cli.program import run_program

        run_program([name, *sys.argv[1:]])

    return run_with_arguments

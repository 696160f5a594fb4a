"""What can go wrong outside our code, by the exit code it ends a command with."""


class AttnsegError(Exception):
    """A fault that the person at the terminal can mend.

    The message is one line: `<file or key>: <what is wrong>; <what to do>`.
    """

    exit_code = 1


class ConfigError(AttnsegError):
    """A configuration that cannot be run."""

    exit_code = 2


class DataError(AttnsegError):
    """A dataset that is missing, broken or contradicts itself."""

    exit_code = 3


class CheckpointError(AttnsegError):
    """A checkpoint or published weight file that does not fit."""

    exit_code = 4


class ResourceError(AttnsegError):
    """A machine that has too little of something: disk, memory, permissions."""

    exit_code = 5

"""What can go wrong in a run, and the exit code each kind ends with."""

from data.errors import DataError

__all__ = [
    "EXIT_CONFIG",
    "EXIT_DATA",
    "EXIT_OK",
    "EXIT_PREEMPTED",
    "ConfigError",
    "DataError",
    "Preempted",
]

EXIT_OK = 0
EXIT_CONFIG = 2  # the config or the command line is wrong
EXIT_DATA = 3  # a file is missing, torn or of another kind
EXIT_PREEMPTED = 75  # stopped on request, all work saved; the same command with --resume continues


class ConfigError(ValueError):
    """The config or the command line is wrong; the message says what to change."""


class Preempted(Exception):
    """A loop was asked to stop (`StopFlag`), has saved its state and ends here."""

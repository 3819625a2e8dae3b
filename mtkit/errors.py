"""Errors for the user: one line that says what is wrong, where, and what to do.

Everything raised on purpose is an `MtkitError`, and its class determines the exit code of the process. Any other
exception that reaches the command line is a bug in mtkit (exit code 1).
"""


class MtkitError(Exception):
    """A user's mistake or a failure of the machine, described in one line.

    Args:
        what: what is wrong, in plain words.
        where: the location: `file:line`, or the config key.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.what}{hint}"


class ConfigError(MtkitError):
    """The command line or the YAML file is wrong."""

    exit_code = 2


class DataError(MtkitError):
    """A corpus or an input text is missing, malformed or inconsistent."""

    exit_code = 3


class TrainingError(MtkitError):
    """Training cannot continue: a non-finite loss, out of memory."""

    exit_code = 4


class StorageError(MtkitError):
    """The disk failed, or a checkpoint or model folder is missing, damaged or in use."""

    exit_code = 5


class FolderInUseError(StorageError):
    """Another process holds the lock on a folder."""

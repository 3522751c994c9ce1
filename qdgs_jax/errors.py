"""Errors that a user can mend: one clear sentence, the remedy last."""


class QDGSError(Exception):
    """Something failed for a reason the message explains; exit status 1."""


class ConfigError(QDGSError):
    """The command line or a config asks for something impossible; exit status 2."""


class CheckpointError(QDGSError):
    """A file of weights is unreadable, unsafe or not what it was said to be."""

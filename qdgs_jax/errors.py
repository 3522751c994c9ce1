"""Errors that a user can correct: one clear sentence, the remedy last."""

import difflib
from collections.abc import Iterable


class QDGSError(Exception):
    """A failure that the message explains; exit status 1."""


class ConfigError(QDGSError):
    """The command line or a config asks for something impossible; exit status 2."""


class CheckpointError(QDGSError):
    """A file of weights is unreadable, unsafe or of the wrong kind."""


class LostProcessError(QDGSError):
    """Another process of this command has ended, so that waiting for it would never end."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that resembles `name` most, as a parenthesis to append; empty if none does."""
    if len(name) > 100:  # the comparison takes the square of its length
        return ""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def shorten(value: object, size: int = 200) -> str:
    """A text from a file or a command line, for a sentence: cut where it is long."""
    text = str(value)
    return text if len(text) <= size else f"{text[:size]}..."

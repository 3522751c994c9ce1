"""Starts `qdgs`, so that a signal ends in a sentence, whatever it interrupts."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SENTENCE = "qdgs: Interrupted: run the same command again."


def main() -> None:
    """Entry point of `qdgs` and of `python -m qdgs_jax`."""
    try:
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
            signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = interrupt_again
        from qdgs_jax import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(SENTENCE)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; during an import, where native code may crash on it, exits."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            with contextlib.suppress(OSError):
                os.write(2, f"{SENTENCE}\n".encode())
            os._exit(1)
        frame = frame.f_back
    raise KeyboardInterrupt


def interrupt_again(unraisable: Any) -> None:
    """Repeats an interrupt that met a finaliser or a callback, which cannot raise."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # Sent to the thread, so that it also ends a system call that waits.
        main_thread = threading.main_thread().ident
        timer = threading.Timer(0.1, signal.pthread_kill, [main_thread, signal.SIGTERM])
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    main()

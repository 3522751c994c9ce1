"""Starts `qdgs`, so that a signal during the imports, too, ends in a sentence."""

import signal
import sys


def main() -> None:
    """Entry point of `qdgs` and of `python -m qdgs_jax`."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from qdgs_jax import cli
    except KeyboardInterrupt:
        sys.exit("qdgs: Interrupted: run the same command again.")
    cli.main()


if __name__ == "__main__":
    main()

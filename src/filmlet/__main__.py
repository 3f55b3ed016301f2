"""`python -m filmlet` and `filmlet` are the command line."""

import signal
import sys


def main() -> int:
    """Run it; until it listens itself, Ctrl-C ends the process without a trace."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from filmlet.cli.main import main as run  # noqa: PLC0415 - takes a while

    return run()


if __name__ == "__main__":
    sys.exit(main())

"""The `edgekd` command, also as `python -m edgekd`. It parses on any Python 3 and refuses old versions."""

import sys


def main() -> None:
    """Run the command line, if this Python and its packages allow that."""
    if sys.version_info < (3, 10):  # noqa: UP036 pip refuses an old one, `python -m edgekd` in a checkout does not
        found = ".".join(map(str, sys.version_info[:2]))
        _refuse("this Python is too old; expected Python 3.10 or newer; found Python " + found)
    try:
        from edgekd.commands.cli import main as run
    except ImportError as error:
        _refuse(str(error) + "; fix: install edgekd with its dependencies: pip install edgekd")
    run()


def _refuse(message: str) -> None:
    sys.stderr.write("edgekd: " + message + "\n")
    sys.exit(2)


if __name__ == "__main__":
    main()

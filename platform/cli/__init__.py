"""The command line, and what another terminal program on the library can share with it."""

import sys as _sys

_EXTRA = {"rich", "typer"}

try:
    from .databases import DatabaseOption, existing_database, prepared_database
    from .terminal import Refusal, console, report_books, run, show
except ModuleNotFoundError as missing:
    # An embedded library forces no terminal packages on its host; who lacks them is told by ``command``.
    if (missing.name or "").partition(".")[0] not in _EXTRA:
        raise

__all__ = [
    "DatabaseOption",
    "Refusal",
    "command",
    "console",
    "existing_database",
    "prepared_database",
    "report_books",
    "run",
    "show",
]


def command() -> int:
    """What is installed as ``points-platform``: the command line, or a line that says what it lacks."""
    try:
        from .main import main
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _EXTRA:
            raise
        _sys.stderr.write("error: the command line needs its extra: pip install 'points-platform[cli]'\n")
        return 2  # not 1, which is an answer of some commands
    return main()

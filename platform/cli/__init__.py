"""The command line, and what another terminal program on the library can share with it."""

from .databases import DatabaseOption, existing_database, prepared_database
from .terminal import Refusal, console, report_books, run, show

__all__ = [
    "DatabaseOption",
    "Refusal",
    "console",
    "existing_database",
    "prepared_database",
    "report_books",
    "run",
    "show",
]

"""Telling a key from the name of the place where it lies: everybody may know a path, so none is ever a secret."""

import os
import re

from ..core.values import plain_string

MOST = 4096  # characters: no system has longer paths
# What shells, files of settings and editors leave around a text.
AROUND = " \t\r\n\v\f\0'\"\ufeff\u00a0\u200b"
# Absolute, of a home, relative by its dots, of a drive or a share, by a variable, and whatever has a scheme.
BEGINNINGS = re.compile(
    r"/|~[\w.-]*(?:[\\/]|$)|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\|\$\w+[\\/]|\$\{\w+\}[\\/]|%\w+%[\\/]"
    r"|[A-Za-z][A-Za-z0-9+.-]*://|file:|arn:"
)
ENDINGS = re.compile(
    r"\.(?:pem|key|pub|json|jwks?|der|crt|cer|cert|p8|p12|pfx|asc|gpg|txt|secret|env|ini|conf|ya?ml|toml)", re.I
)
ENDING_LENGTH = 8
# Folders with names made of words; what a generator of secrets makes has no words.
WORD = r"(?:[A-Z]++[a-z0-9]*+|[a-z0-9]++)"
NAME = rf"[-_.]*+{WORD}(?:[-_.]++{WORD})*+"
RELATIVE = re.compile(rf"{NAME}(?:[\\/]{NAME})+[\\/]?")


def is_place(text: str) -> bool:
    """Whether a text has the form of a path or an address, or is the name of a file that is there."""
    text = text.strip(AROUND)
    if BEGINNINGS.match(text) or RELATIVE.fullmatch(text[: MOST + 1]):
        return True
    _, dot, ending = text[-ENDING_LENGTH:].rpartition(".")
    return bool(dot and ENDINGS.fullmatch(dot + ending)) or _is_there(text)


def shown_place(place: object) -> str:
    """A path for a message; what has not its form may be a secret in the wrong place, and is not shown."""
    text = plain_string(place) if isinstance(place, str) else os.fspath(place) if isinstance(place, os.PathLike) else ""
    return (
        text
        if isinstance(text, str) and len(text) <= MOST and text.isprintable() and is_place(text)
        else "what is no path"
    )


def _is_there(text: str) -> bool:
    return 0 < len(text) <= MOST and os.path.exists(text)

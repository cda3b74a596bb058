"""Any value as a JSON writer takes it: what errors tell in their details, and log lines in their fields.

Values that a caller handed in are trusted with nothing: neither with their ``repr`` nor with their size.
"""

import math
import reprlib
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from enum import Enum
from itertools import islice
from typing import Any

MAX_SHOWN = 120  # characters of what a caller handed in
MAX_TEXT = 2000  # characters of what is our own
MAX_ITEMS = 1000  # of all lists in one value together
MAX_DEPTH = 6
LARGEST = 2**63 - 1  # the largest whole number that every JSON writer of Python's takes


class _Repr(reprlib.Repr):
    """Its base sorts all members of what is not a sequence to show the least; this one sorts only the first."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)

    def repr_set(self, x: set[Any], level: int) -> str:
        return super().repr_set(set(islice(x, self.maxset + 1)), level)

    def repr_frozenset(self, x: frozenset[Any], level: int) -> str:
        return super().repr_frozenset(frozenset(islice(x, self.maxfrozenset + 1)), level)


_repr = _Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlevel = 2


def shown(value: object) -> str:
    """Anything as one short, printable piece of text, as Python would write it."""
    try:
        return _printable(_repr.repr(value))
    except Exception:  # a hostile __repr__, or an int with more digits than Python prints
        return _printable(f"<{type(value).__name__}>")


def one(kind: type) -> str:
    """What a thing of this type is called, with its article: a ``UserCreditRequest``, an ``int``."""
    # As in "a user", the letter is not what is heard.
    an = kind.__name__.lower().startswith(("a", "e", "i", "o"))
    return f"{'an' if an else 'a'} {kind.__name__}"


def plain(value: object) -> Any:
    """``None``, bool, int, finite float or text, or lists and dicts of these; whatever else it is, as short text.

    Times become ISO text, members of an enumeration their values, tuples lists. Raises nothing.
    """
    try:
        return _plain(value, MAX_DEPTH, iter(range(MAX_ITEMS)))
    except Exception:  # what a subclass of a time or of a collection may do
        return shown(value)


def handed_in(value: object) -> Any:
    """The same of what a caller handed in: a scalar of moderate size as it is, anything else as short text."""
    if value is None or isinstance(value, bool):
        return value
    return _scalar(value, MAX_SHOWN) if isinstance(value, str | int | float) else shown(value)


def _plain(value: Any, depth: int, budget: Iterator[int]) -> Any:
    """The budget is one for all that is in the value, however wide and deep."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | int | float):
        return _scalar(value, MAX_TEXT)
    if isinstance(value, datetime | date | time):
        return _scalar(value.isoformat(), MAX_SHOWN)
    if isinstance(value, Enum) and depth:
        return _plain(value.value, depth - 1, budget)
    if isinstance(value, tuple | list) and depth:
        return [_plain(each, depth - 1, budget) for _, each in zip(budget, value, strict=False)]
    if isinstance(value, Mapping) and depth:
        items = zip(budget, value.items(), strict=False)
        return {_scalar(str(name), MAX_SHOWN): _plain(each, depth - 1, budget) for _, (name, each) in items}
    return shown(value)


def _scalar(value: str | int | float, longest: int) -> Any:
    """By the methods of the type itself: a subclass, like an enumeration's, may say anything of its value."""
    if isinstance(value, str):
        text = str.__str__(value)
        text = text if len(text) <= longest else text[: longest - 1] + "…"
        return text.encode("utf-8", "backslashreplace").decode()  # what UTF-8 cannot say, no answer can
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -LARGEST <= number <= LARGEST else shown(number)
    real = float.__float__(value)
    return real if math.isfinite(real) else shown(real)


def _printable(text: str) -> str:
    return (text if text.isprintable() else ascii(text))[:MAX_SHOWN]

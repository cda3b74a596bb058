"""Values that only somebody hostile, or a library with ideas of its own, would hand in."""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any


class Text(str):
    """A string whose every method raises: only its characters may be asked for."""

    __slots__ = ()

    def _refuse(self, *args: object, **options: object) -> Any:
        raise RuntimeError("do not touch")

    __add__ = __len__ = __iter__ = __getitem__ = __contains__ = __lt__ = __gt__ = __mod__ = __format__ = _refuse
    __str__ = __repr__ = _refuse
    encode = partition = split = strip = startswith = isprintable = isidentifier = lower = upper = replace = _refuse
    removeprefix = isascii = isdigit = join = format = _refuse

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare")

    def __ne__(self, other: object) -> bool:
        raise RuntimeError("do not compare")

    __hash__ = _refuse


class Thing:
    """Equal to nothing and shown by nobody: whatever is asked of it raises."""

    def _refuse(self, *args: object, **options: object) -> Any:
        raise RuntimeError("do not touch")

    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __add__ = __radd__ = _refuse
    __repr__ = __str__ = __len__ = __bool__ = __iter__ = __getitem__ = __int__ = __float__ = __index__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class Index:
    """A whole number to everybody who asks for an index, as those of numeric libraries are."""

    def __index__(self) -> int:
        return 5

    __int__ = __index__


class Zone(tzinfo):
    """A time zone that raises."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        raise RuntimeError("no time here")

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> str:
        raise RuntimeError("no name here")


class Wide(tzinfo):
    """A time zone further away than a day."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(days=2)

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> str:
        return "far"


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
# No text, no time, no number of any use.
NOTHINGS: list[Any] = [
    *(Thing(), Index(), object(), [], {}, set(), (), b"ana", bytearray(b"ana"), memoryview(b"ana"), 1.5, float("nan")),
    *(True, False, -1, 10**5000, complex(1), range(3), NOON.date(), timedelta(1), NOON.replace(tzinfo=None), Ellipsis),
    *(NOON.replace(tzinfo=Zone()), NOON.replace(tzinfo=Wide()), lambda: 1, type, NotImplemented, Exception("x")),
]
BAD_TEXTS: list[Any] = [
    *("", "x" * 129, "a\0", "\0", "\ud800", "a\udfff", "\u202eana", "\u200b", "\ufeff", "\n", "\x1b[2J", "x" * 10**6),
    Text(""),
    Text("\0"),
]

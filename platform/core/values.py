"""The values that everything else is made of: points, identifiers, codes, metadata, time.

A check takes the name of a field and what was given for it, and returns the value in its plain
form, or raises ``InvalidRequestError``. ``Points``, ``Identifier`` and so on are the same checks as
types: a field of a ``Checked`` dataclass that is declared with one is checked on construction.
"""

import base64
import json
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, cast, get_type_hints

import uuid_utils

from .errors import InvalidRequestError

# The largest whole number that every JSON reader keeps exactly (RFC 8259, section 6).
MAX_POINTS = 2**53 - 1
MAX_ID_LENGTH = 128
MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 32
MAX_PAGE = 1000

T = TypeVar("T")
P = ParamSpec("P")
Check = Callable[[str, Any], Any]


def now() -> datetime:
    """The current time, aware, in UTC, with microseconds."""
    return datetime.now(UTC)


def new_id() -> str:
    """A new UUIDv7 (RFC 9562) as a string: sortable by time of creation."""
    return str(uuid_utils.uuid7())


def id_at(time: datetime) -> str:
    """The smallest UUIDv7 of that millisecond: what was made earlier sorts before it."""
    digits = f"{max(0, int(time.timestamp() * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"


def time_of(uuid7: str) -> datetime:
    """The time at which a UUIDv7 was made, by its maker's clock (RFC 9562, section 5.7)."""
    return datetime.fromtimestamp(int(uuid7.replace("-", "")[:12], 16) / 1000, UTC)


def check_points(field: str, value: Any) -> int:
    """A whole number of points from 1 to 2**53 - 1; a ``bool`` or ``float`` is none."""
    if type(value) is not int or not 1 <= value <= MAX_POINTS:
        raise InvalidRequestError(
            field=field, value=value, expected=f"a whole number (int) of points from 1 to {MAX_POINTS}"
        )
    return value


def check_count(field: str, value: Any) -> int:
    """A whole number from 0 to 2**53 - 1: a position or a version."""
    if type(value) is not int or not 0 <= value <= MAX_POINTS:
        raise InvalidRequestError(field=field, value=value, expected=f"a whole number (int) from 0 to {MAX_POINTS}")
    return value


def check_identifier(field: str, value: Any) -> str:
    """A string of 1 to 128 printable characters (``str.isprintable``)."""
    text = plain_string(value)
    if text is None or not 1 <= len(text) <= MAX_ID_LENGTH or not text.isprintable():
        raise InvalidRequestError(
            field=field, value=value, expected=f"a string of 1 to {MAX_ID_LENGTH} printable characters"
        )
    return text


def plain_string(value: Any) -> str | None:
    """The characters of a string, whatever a subclass of ``str`` says of them: of an enumeration its value."""
    return str.__str__(value) if isinstance(value, str) else None


def _code(pattern: str) -> Check:
    matches = re.compile(pattern).fullmatch

    def check(field: str, value: Any) -> str:
        text = plain_string(value)
        if text is None or not matches(text):
            raise InvalidRequestError(field=field, value=value, expected=f"a code like {pattern}")
        return text

    return check


check_reason = _code("[a-z][a-z0-9_]{0,63}")
check_code = _code("[a-z][a-z0-9_]{0,31}")


def check_time(field: str, value: Any) -> datetime:
    """An aware ``datetime``, in any UTC offset; returned in UTC."""
    expected = "a datetime with a UTC offset"
    try:
        if isinstance(value, datetime) and value.utcoffset() is not None:
            return value.astimezone(UTC)
    except OverflowError:
        expected = "a time between the years 1 and 9999"
    except Exception as error:  # whatever a hostile tzinfo may raise
        raise InvalidRequestError(field=field, value=value, expected=expected) from error
    raise InvalidRequestError(field=field, value=value, expected=expected)


def check_metadata(field: str, value: Any) -> dict[str, Any] | None:
    """A JSON object of at most 16 KiB (canonical, UTF-8) and depth 32, or ``None``; a deep copy."""
    if value is None:
        return None
    text = canonical_json(value, field)
    copy: dict[str, Any] = json.loads(text)
    return copy


def canonical_json(value: Any, field: str = "metadata") -> str:
    """The one text of a JSON object: keys sorted by code point, no white space, not escaped to ASCII.

    Raises ``InvalidRequestError`` for what is no JSON object, would not survive a round trip, is
    nested deeper than 32 levels, or takes more than 16 KiB.
    """
    expected = f"a JSON object of at most {MAX_METADATA_BYTES} bytes and {MAX_METADATA_DEPTH} levels, without NaN"
    try:
        _check_json(value)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        if isinstance(value, dict) and len(text.encode()) <= MAX_METADATA_BYTES:
            return text
    except Exception as error:  # whatever a hostile subclass of dict or list may raise
        raise InvalidRequestError(field=field, value=value, expected=expected) from error
    raise InvalidRequestError(field=field, value=value, expected=expected)


def _check_json(root: Any) -> None:
    """Refuse what ``json`` would quietly rewrite (other keys than strings, tuples) or take for ever over."""
    pending, budget = [(root, MAX_METADATA_DEPTH)], MAX_METADATA_BYTES
    while pending:
        value, depth = pending.pop()
        budget -= _least_size(value)
        if budget < 0:
            raise ValueError
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise ValueError
            value = [*value, *value.values()]
        if isinstance(value, list):
            if depth == 0:
                raise ValueError
            pending += [(member, depth - 1) for member in value]


def _least_size(value: Any) -> int:
    """A number of bytes that its JSON takes at least: what is larger than allowed need not be written to know it."""
    if isinstance(value, str | dict | list):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 4
    if not isinstance(value, float | None):
        raise TypeError
    return 0


def optional(check: Check) -> Check:
    """The same check for a field that may be ``None``."""
    return lambda field, value: None if value is None else check(field, value)


Points = Annotated[int, check_points]
Identifier = Annotated[str, check_identifier]
Reason = Annotated[str, check_reason]
Code = Annotated[str, check_code]
OptionalCode = Annotated[str | None, optional(check_code)]
OptionalIdentifier = Annotated[str | None, optional(check_identifier)]
Metadata = Annotated[dict[str, Any] | None, check_metadata]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A frozen dataclass whose fields are checked and brought to their plain form on construction."""

    def __post_init__(self) -> None:
        given = vars(self)
        for name, check in checks_of(type(self)):
            value = given[name]
            if (plain := check(name, value)) is not value:
                object.__setattr__(self, name, plain)


def filled(cls: type[T], values: dict[str, Any]) -> T:
    """A frozen data class with a value for each of its fields, past its constructor: that takes many times as long.

    The values are its own from then on.
    """
    made = object.__new__(cls)
    object.__setattr__(made, "__dict__", values)
    return made


class HasMetadata:
    """Carries metadata as canonical JSON text, so that the value stays immutable."""

    __slots__ = ()
    metadata_json: str | None

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The metadata of the request, a fresh copy each time."""
        parsed: dict[str, Any] | None = None if self.metadata_json is None else json.loads(self.metadata_json)
        return parsed


def checks_of(cls: type) -> tuple[tuple[str, Check], ...]:
    """The checked fields of a class in the order of declaration, each with its check."""
    return _declared_checks(cast(Hashable, cls))


@cache
def _declared_checks(cls: type) -> tuple[tuple[str, Check], ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple((name, check) for name, hint in hints.items() for check in getattr(hint, "__metadata__", ()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """A part of a list. ``next`` is the cursor to give as ``after`` for what follows, ``None`` at the end."""

    items: tuple[T, ...]
    next: str | None


def every(read: Callable[P, Page[T]], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
    """Every item of what is read in pages: ``for line in every(ledger.entries, "user:ana", "points")``.

    The method's own arguments follow it; pages are as large as may be unless ``limit`` says otherwise, ``after`` is
    where to begin. The first page is read at once, each other one when its turn comes, as of then. Raises
    ``InvalidRequestError`` for what is no method that answers a page, and what the method raises.
    """
    options: dict[str, Any] = {"limit": MAX_PAGE, **kwargs}
    _check_page(read, callable(read))
    page = read(*args, **options)
    _check_page(read, isinstance(page, Page))

    def items(page: Page[T]) -> Iterator[T]:
        yield from page.items
        while page.next is not None:
            options["after"] = page.next
            page = read(*args, **options)
            yield from page.items

    return items(page)


def _check_page(read: object, fits: bool) -> None:
    check_part("read", read, "a method that answers a Page, like wallets.list_escrows", fits=fits)


def check_part(field: str, value: object, expected: str, *, fits: bool) -> None:
    """Refuse a part of a service that is something else; told by its type alone, since it may be a secret.

    Raises ``InvalidRequestError``.
    """
    if not fits or isinstance(value, type):
        kind = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise InvalidRequestError(field=field, value=kind, expected=expected)


def check_limit(field: str, value: Any) -> int:
    """The size of a page: 1 to 1000."""
    if type(value) is not int or not 1 <= value <= MAX_PAGE:
        raise InvalidRequestError(field=field, value=value, expected=f"a whole number from 1 to {MAX_PAGE}")
    return value


def encode_cursor(*parts: str | int | datetime) -> str:
    """An opaque text for the place where a page ended."""
    plain = [part.isoformat() if isinstance(part, datetime) else part for part in parts]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def decode_cursor(field: str, value: Any, *kinds: type) -> list[Any]:
    """The parts of a cursor that ``encode_cursor`` made, each of the kind asked for.

    Raises ``InvalidRequestError`` for anything else.
    """
    text = plain_string(value) or ""
    try:
        parts = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        read = [_part_check(kind)(field, part) for kind, part in zip(kinds, parts, strict=True)]
        if encode_cursor(*read) == text:
            return read
    except (TypeError, ValueError, RecursionError, InvalidRequestError):
        pass
    raise InvalidRequestError(field=field, value=value, expected="a cursor that an earlier page returned")


def _part_check(kind: type) -> Check:
    # Where a test of a host's has frozen the time, its datetime is a subclass.
    return next(check for known, check in _PART_CHECKS.items() if issubclass(kind, known))


_PART_CHECKS: dict[type, Check] = {
    str: check_identifier,
    int: check_count,
    datetime: lambda field, value: check_time(field, datetime.fromisoformat(value)),
}

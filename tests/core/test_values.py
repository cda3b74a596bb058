"""The values: ids, time, canonical JSON, checks on construction, cursors."""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from uuid import UUID

import pytest
from freezegun import freeze_time

from points_platform.core import MAX_POINTS, InvalidRequestError
from points_platform.core.values import (
    MAX_PAGE,
    Checked,
    Code,
    Identifier,
    OptionalCode,
    Points,
    canonical_json,
    check_code,
    check_count,
    check_identifier,
    check_limit,
    check_metadata,
    check_points,
    check_reason,
    check_time,
    checks_of,
    decode_cursor,
    encode_cursor,
    id_at,
    new_id,
    now,
    time_of,
)
from support.answers import told

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def cursor_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_the_largest_amount_is_the_largest_integer_of_json() -> None:
    assert MAX_POINTS == 2**53 - 1
    assert int(float(MAX_POINTS)) == MAX_POINTS
    assert check_points("amount", MAX_POINTS) == MAX_POINTS


def test_ids_are_uuids_of_version_7_that_sort_by_creation() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert {(UUID(each).version, str(UUID(each)), len(each)) for each in ids[:10]} == {
        (7, each, 36) for each in ids[:10]
    }


@pytest.mark.parametrize(
    ("at", "smallest"),
    [
        (NOON, "019ca945-0a7b-7000-8000-000000000000"),
        (datetime(1970, 1, 1, 0, 0, 0, 1999, tzinfo=UTC), "00000000-0001-7000-8000-000000000000"),
        (datetime(1969, 12, 31, tzinfo=UTC), "00000000-0000-7000-8000-000000000000"),
    ],
)
def test_the_smallest_id_of_a_millisecond_tells_its_time(at: datetime, smallest: str) -> None:
    assert id_at(at) == smallest
    first = max(at, datetime(1970, 1, 1, tzinfo=UTC))
    assert time_of(smallest) == first.replace(microsecond=first.microsecond // 1000 * 1000)
    assert time_of(smallest).tzinfo is UTC


def test_an_id_tells_when_it_was_made_and_sorts_after_the_smallest_of_that_time() -> None:
    before, made, after = now(), new_id(), now()
    assert before - timedelta(milliseconds=1) < time_of(made) <= after
    assert id_at(time_of(made)) <= made < id_at(time_of(made) + timedelta(milliseconds=1))


def test_now_is_aware_utc_with_microseconds() -> None:
    with freeze_time(NOON):
        assert now() == NOON
    assert now().utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (NOON, NOON),
        (NOON.astimezone(timezone(timedelta(hours=5, minutes=45))), NOON),
        (datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
        (datetime.min.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_a_time_is_brought_to_utc(given: datetime, expected: datetime) -> None:
    assert (check_time("at", given), check_time("at", given).tzinfo) == (expected, UTC)


def test_a_time_is_brought_to_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        read = check_time("at", NOON)
    time.tzset()
    assert (read, read.tzinfo) == (NOON, UTC)


@pytest.mark.parametrize(
    "given",
    [
        None,
        0,
        "2026-03-01T12:00:00Z",
        NOON.replace(tzinfo=None),
        NOON.date(),
        NOON.timetz(),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
    ids=repr,
)
def test_what_is_no_instant_is_refused(given: object) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        check_time("at", given)
    assert (refusal.value.details["field"], refusal.value.details["value"]) == ("at", told(given))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, "{}"),
        ({"b": 1, "a": 2, "B": 3, "é": 4, "Z": 5}, '{"B":3,"Z":5,"a":2,"b":1,"é":4}'),
        ({"a": [1, 1.0, True, None, "x"]}, '{"a":[1,1.0,true,null,"x"]}'),
        ({"a": {"d": 1, "c": []}}, '{"a":{"c":[],"d":1}}'),
        ({"a": '"\\/\n\x00\x7f\u2028😀'}, '{"a":"\\"\\\\/\\n\\u0000\x7f\u2028😀"}'),
        ({"a": 2**100, "b": -0.0, "c": 1e22}, '{"a":1267650600228229401496703205376,"b":-0.0,"c":1e+22}'),
    ],
)
def test_json_has_one_text(value: dict[str, Any], expected: str) -> None:
    assert canonical_json(value) == expected
    assert canonical_json(json.loads(expected)) == expected
    assert check_metadata("metadata", value) == value


@pytest.mark.parametrize("value", [None, [], "a", 1, True, 1.5])
def test_only_an_object_has_a_canonical_text(value: object) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        canonical_json(value, "payload")
    assert (refusal.value.details["field"], refusal.value.details["value"]) == ("payload", told(value))
    with pytest.raises(InvalidRequestError, match="metadata must be a JSON object"):
        canonical_json(value)


@dataclass(frozen=True, kw_only=True)
class Named(Checked):
    name: Identifier
    code: Code = "a"
    free: Any = None


@dataclass(frozen=True, kw_only=True)
class Counted(Named):
    amount: Points
    currency: OptionalCode = None


def test_a_checked_dataclass_checks_its_fields_and_the_inherited_ones() -> None:
    assert [name for name, _ in checks_of(Counted)] == ["name", "code", "amount", "currency"]
    assert Counted(name="x", amount=1, free=object()).currency is None
    for wrong in ({"name": ""}, {"code": "A"}, {"amount": 0}, {"currency": ""}):
        fields: dict[str, Any] = {"name": "x", "amount": 1, **wrong}
        with pytest.raises(InvalidRequestError) as refusal:
            Counted(**fields)
        assert {refusal.value.details["field"]: refusal.value.details["value"]} == wrong


class NoZone(tzinfo):
    """Nobody can tell what time it is there."""

    def utcoffset(self, moment: datetime | None) -> Any:
        raise LookupError("no time here")

    dst = tzname = utcoffset


POINTS = "a whole number (int) of points from 1 to 9007199254740991"
METADATA = "a JSON object of at most 16384 bytes and 32 levels, without NaN"
REFUSALS: list[tuple[Callable[[str, Any], Any], Any, str]] = [
    (check_points, 0, f"{POINTS}, not 0"),
    (check_points, True, f"{POINTS}, not True"),
    (check_count, -1, "a whole number (int) from 0 to 9007199254740991, not -1"),
    (check_limit, 1001, "a whole number from 1 to 1000, not 1001"),
    (check_identifier, "", "a string of 1 to 128 printable characters, not ''"),
    (check_reason, "A", "a code like [a-z][a-z0-9_]{0,63}, not 'A'"),
    (check_code, "A", "a code like [a-z][a-z0-9_]{0,31}, not 'A'"),
    (check_time, 0, "a datetime with a UTC offset, not 0"),
    (
        check_time,
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        "a time between the years 1 and 9999, not datetime.datetime(1, 1,",
    ),
    (check_time, NOON.replace(tzinfo=NoZone()), "a datetime with a UTC offset, not datetime.datetime(2026, 3, 1,"),
    (check_metadata, 1, f"{METADATA}, not 1"),
    (check_metadata, {"a": "x" * 16384}, f"{METADATA}, not {{'a': "),
    (check_metadata, {"a": float("nan")}, f"{METADATA}, not {{'a': nan}}"),
    (lambda field, value: decode_cursor(field, value, str), "!", "a cursor that an earlier page returned, not '!'"),
]


@pytest.mark.parametrize(("check", "given", "expected"), REFUSALS)
def test_a_refusal_names_the_field_and_says_what_it_must_be(
    check: Callable[[str, Any], Any], given: Any, expected: str
) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        check("the_field", given)
    assert str(refusal.value).startswith(f"the_field must be {expected}")
    assert (refusal.value.details["field"], refusal.value.details["value"]) == ("the_field", told(given))


def test_a_page_has_1_to_1000_items() -> None:
    assert [check_limit("limit", limit) for limit in (1, 50, MAX_PAGE)] == [1, 50, 1000]
    for wrong in (0, -1, 1001, True, 1.0, "1", None, 2**70):
        with pytest.raises(InvalidRequestError) as refusal:
            check_limit("limit", wrong)
        assert refusal.value.details["value"] == told(wrong)


@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        (["an id"], [str]),
        (["é😀 \"'"], [str]),
        ([0], [int]),
        ([MAX_POINTS, 1], [int, int]),
        ([NOON, 3, "id", "available"], [datetime, int, str, str]),
    ],
)
def test_a_cursor_is_read_as_it_was_written(parts: list[Any], kinds: list[type]) -> None:
    cursor = encode_cursor(*parts)
    assert cursor.isascii()
    assert cursor.replace("-", "").replace("_", "").isalnum(), "it fits into an address as it is"
    assert decode_cursor("after", cursor, *kinds) == parts


FORGED = {
    "nothing": "",
    "no base64": "!!!",
    "not of this alphabet": encode_cursor("an id") + "!",
    "with line breaks": encode_cursor("an id") + "\n",
    "padded": cursor_of('["a"]') + "=",
    "beyond ASCII": "é",
    "a surrogate": "\ud800",
    "no JSON": cursor_of("an id"),
    "no UTF-8": "_____w",
    "null": cursor_of("null"),
    "a string": cursor_of('"a"'),
    "an object": cursor_of('{"a":1}'),
    "a number": cursor_of("1"),
    "too few parts": cursor_of("[]"),
    "too many parts": cursor_of('["a","b"]'),
    "another type": cursor_of("[1]"),
    "nested": cursor_of('[["a"]]'),
    "empty text": cursor_of('[""]'),
    "a control character": cursor_of('["\\u0000"]'),
    "a lone surrogate": cursor_of('["\\ud800"]'),
    "too long": encode_cursor("x" * 129),
    "deep": cursor_of("[" * 50_000),
    "not text": 5,
    "bytes": b"WyJhIl0",
    "none": None,
    "a list": ["a"],
}


@pytest.mark.parametrize("given", FORGED.values(), ids=FORGED.keys())
def test_a_forged_cursor_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        decode_cursor("after", given, str)
    assert (refusal.value.details["field"], refusal.value.details["value"]) == ("after", told(given))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[-1]", int),
        ("[true]", int),
        ("[1.0]", int),
        ("[NaN]", int),
        (f"[{2**53}]", int),
        ("[" + "9" * 5000 + "]", int),
        ('["1"]', int),
        ('["2026-03-01T12:00:00"]', datetime),
        ('["0001-01-01T00:00:00+14:00"]', datetime),
        ('["yesterday"]', datetime),
        ("[0]", datetime),
    ],
)
def test_a_forged_part_of_a_cursor_is_refused(text: str, kind: type) -> None:
    with pytest.raises(InvalidRequestError):
        decode_cursor("after", cursor_of(text), kind)

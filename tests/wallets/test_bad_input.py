"""Every field of every request refuses what it cannot be, by name and value, before anything is asked of a database."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Any

import pytest

from points_platform.core import MAX_POINTS, InvalidRequestError
from points_platform.wallets import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    TransactionReason,
    UserCreditRequest,
)
from support.answers import told

VALID: dict[str, Any] = {
    "idempotency_key": "key-1",
    "request_id": "request-1",
    "user_id": "ana",
    "reason": "top_up",
    "metadata": {"a": 1},
    "currency": "points",
    "amount": 30,
    "refund_amount": 10,
    "settle_amount": 20,
    "escrow_id": "0198c2f4-0000-7000-8000-000000000000",
    "model_id": "luna",
    "queue_item_id": "queue-1",
    "feature_type": "song",
}
REQUESTS: list[type[Any]] = [
    UserCreditRequest,
    EscrowHoldRequest,
    EscrowSettleRequest,
    EscrowRefundRequest,
    EscrowPartialSettleRequest,
]
OPTIONAL = {"metadata", "currency"}
IDENTIFIERS = ("idempotency_key", "request_id", "user_id", "escrow_id", "model_id", "queue_item_id")
AMOUNTS = ("amount", "refund_amount", "settle_amount")


class Hostile:
    """Nothing may be asked of it."""

    def _refuse(self, *args: object) -> Any:
        raise RuntimeError("do not touch")

    __repr__ = __str__ = __len__ = __bool__ = __int__ = __index__ = __iter__ = __getitem__ = __lt__ = _refuse
    __eq__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class Impostor(Hostile):
    """Bears the name of a type that is usually shown item by item."""


Impostor.__name__ = "list"


class Count(int):
    """An int that is no plain int."""


class Reason(StrEnum):
    HAPPY_HOUR = "happy_hour"


def nested(levels: int) -> dict[str, Any]:
    """That many objects, one inside the other."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {"list": []}
    value["list"].append(value)
    return value


def shared(levels: int) -> dict[str, Any]:
    """A small structure whose text would have 2**levels parts."""
    value: Any = ["x"]
    for _ in range(levels):
        value = [value, value]
    return {"a": value}


def sized(size: int) -> dict[str, str]:
    """An object whose canonical text has that many bytes."""
    return {"a": "x" * (size - len('{"a":""}'))}


ANYTHING: list[Any] = [
    True,
    1.0,
    b"ana",
    [],
    {},
    (),
    set(),
    object(),
    Decimal(1),
    10**5000,
    float("nan"),
    Hostile(),
    Impostor(),
]
BAD_TEXT: list[Any] = [
    *ANYTHING,
    None,
    0,
    "",
    "x" * 129,
    "a\x00b",
    "\x00",
    "\x1b[31m",
    "a\x7f",
    "a\x85b",
    "ana\n",
    "\nana",
    "a\tb",
    "a\rb",
    "\u2028",
    "\u200b",
    "\u202eana",
    "\ufeff",
    "\ud800",
    "a\udfff",
]
BAD_CODES: list[Any] = [
    *BAD_TEXT,
    "Top_up",
    "1st",
    "_top",
    "top-up",
    "top up",
    "top.up",
    " top",
    "top_up\n",
    "töp",
    "\uff54op",
    "top\u0663",
    "x" * 65,
]
BAD_POINTS: list[Any] = [
    *(value for value in ANYTHING if value is not True),
    True,
    False,
    None,
    0,
    -1,
    -(2**53),
    MAX_POINTS + 1,
    2**63,
    2**64,
    0.5,
    1e3,
    float("inf"),
    float("-inf"),
    Decimal("1.5"),
    Fraction(3),
    complex(1),
    "1",
    "",
    "ten",
    Count(5),
    datetime.now(UTC),
]
BAD_METADATA: list[Any] = [
    *(value for value in ANYTHING if type(value) is not dict),
    [1],
    "{}",
    0,
    False,
    nested(33),
    {"a": [[]] * 3, "b": nested(32)},
    cyclic(),
    shared(28),
    shared(31),
    sized(16 * 1024 + 1),
    {"a": "é" * 8190},
    {"a": "\x00" * 3000},
    {str(number): number for number in range(4000)},
    {"a": float("nan")},
    {"a": [float("inf")]},
    {"a": {"b": float("-inf")}},
    {1: "a"},
    {None: "a"},
    {True: "a"},
    {1.5: "a"},
    {("a",): 1},
    {"a": {2: 1}},
    {"a": [{b"b": 1}]},
    {"a": (1, 2)},
    {"a": {1, 2}},
    {"a": frozenset()},
    {"a": b"bytes"},
    {"a": object()},
    {"a": Hostile()},
    {"a": Decimal(1)},
    {"a": datetime.now(UTC)},
    {"a": range(3)},
    {"a": 10**5000},
    {"a": "\ud800"},
    {"\udc00": 1},
]
BAD: dict[str, list[Any]] = {
    **dict.fromkeys(IDENTIFIERS, BAD_TEXT),
    **dict.fromkeys(AMOUNTS, BAD_POINTS),
    "reason": BAD_CODES,
    "feature_type": [*BAD_CODES, "x" * 33],
    "currency": [*(value for value in BAD_CODES if value is not None), "x" * 33],
    "metadata": BAD_METADATA,
}
each_field = pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, f.name) for kind in REQUESTS for f in fields(kind)],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
each_request = pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)


def valid(kind: type[Any], **changes: Any) -> dict[str, Any]:
    return {f.name: VALID[f.name] for f in fields(kind)} | changes


def refusal_of(call: Callable[..., object], **arguments: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refusal:
        call(**arguments)
    return refusal.value


@each_field
def test_a_field_refuses_what_it_cannot_be(kind: type[Any], name: str) -> None:
    for value in BAD[name]:
        error = refusal_of(kind, **valid(kind, **{name: value}))
        assert error.details["field"] == name
        assert error.details["value"] == told(value)
        assert set(error.details) == {"field", "value", "expected"}
        assert str(error).startswith(f"{name} must be "), "the message can be made, whatever the value is"
        assert len(str(error)) < 1000
        assert str(error).isprintable(), "no value of a caller brings its own line breaks into a log"


@each_field
def test_a_field_that_is_not_optional_must_be_given(kind: type[Any], name: str) -> None:
    arguments = valid(kind)
    del arguments[name]
    if name in OPTIONAL:
        assert getattr(kind(**arguments), name) is None
    else:
        with pytest.raises(TypeError, match=name):
            kind(**arguments)


@each_field
def test_a_request_cannot_be_changed(kind: type[Any], name: str) -> None:
    request = kind(**valid(kind))
    with pytest.raises(FrozenInstanceError):
        setattr(request, name, VALID[name])
    with pytest.raises(FrozenInstanceError):
        delattr(request, name)


@each_request
def test_a_changed_copy_is_checked_as_well(kind: type[Any]) -> None:
    error = refusal_of(lambda **changes: replace(kind(**valid(kind)), **changes), reason="No code")
    assert error.details["field"] == "reason"


@each_request
def test_fields_are_given_by_name_only(kind: type[Any]) -> None:
    with pytest.raises(TypeError):
        kind(*valid(kind).values())
    with pytest.raises(TypeError):
        kind(**valid(kind), currencies="points")


@each_request
def test_the_first_wrong_field_in_the_order_of_declaration_is_named(kind: type[Any]) -> None:
    names = [f.name for f in fields(kind)]
    wrong = {name: object() for name in names}
    for name in names:
        assert refusal_of(kind, **wrong).details["field"] == name
        wrong[name] = VALID[name]
    assert kind(**wrong) == kind(**valid(kind))


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_an_identifier_may_be_any_printable_text(name: str) -> None:
    kind = next(kind for kind in REQUESTS if name in {f.name for f in fields(kind)})
    for value in ("x", "x" * 128, "é" * 128, "😀" * 128, "a b", "' OR 1=1 --", "%s{0}\\", "用户", " "):
        assert getattr(kind(**valid(kind, **{name: value})), name) == value


@pytest.mark.parametrize("name", AMOUNTS)
def test_an_amount_may_be_anything_from_1_to_the_limit(name: str) -> None:
    kind = next(kind for kind in REQUESTS if name in {f.name for f in fields(kind)})
    for value in (1, 2, MAX_POINTS - 1, MAX_POINTS):
        assert getattr(kind(**valid(kind, **{name: value})), name) == value


def test_codes_may_have_their_full_length() -> None:
    request = EscrowHoldRequest(**valid(EscrowHoldRequest, reason="r" * 64, currency="c" * 32, feature_type="f_9" * 10))
    assert (request.reason, request.currency, request.feature_type) == ("r" * 64, "c" * 32, "f_9" * 10)


@pytest.mark.parametrize(
    "value",
    [
        {},
        sized(16 * 1024),
        {"a": "é" * 8188},
        nested(32),
        {"a": shared(5)},
        {"": None, "a": [True, False, 0, -1, 1.5, -0.0, 1e300, 2**200]},
        {"\x00": "\x00", "nl": "\n", "😀": "\u2028"},
        OrderedDict(b=1, a=2),
    ],
    ids=["empty", "16 KiB", "16 KiB of UTF-8", "32 levels", "shared", "every type", "odd text", "ordered"],
)
def test_metadata_may_be_any_json_object_within_its_limits(value: dict[str, Any]) -> None:
    request = UserCreditRequest(**valid(UserCreditRequest, metadata=value))
    assert request.metadata == value
    assert type(request.metadata) is dict


def test_metadata_is_copied_deeply_at_construction() -> None:
    given: dict[str, Any] = {"list": [1], "object": {"a": "b"}}
    request = UserCreditRequest(**valid(UserCreditRequest, metadata=given))
    given["list"].append(2)
    given["object"]["a"] = float("nan")
    given["new"] = object()
    assert request.metadata == {"list": [1], "object": {"a": "b"}}


def test_a_request_made_from_another_shares_no_metadata_with_it() -> None:
    first = UserCreditRequest(**valid(UserCreditRequest, metadata={"list": [1]}))
    second = replace(first, request_id="request-2")
    assert first.metadata is not None
    first.metadata["list"].append(2)
    assert second.metadata == {"list": [1]}


@each_request
def test_strings_of_other_types_come_out_plain(kind: type[Any]) -> None:
    texts = {name: value for name, value in valid(kind).items() if isinstance(value, str)}
    named = StrEnum("named", list(texts.items()))  # type: ignore[misc]
    request = kind(**valid(kind, **{name: getattr(named, name) for name in texts}))
    assert {name: type(getattr(request, name)) for name in texts} == dict.fromkeys(texts, str)
    assert request == kind(**valid(kind))


def test_reasons_may_be_the_standard_ones_or_the_hosts_own() -> None:
    for reason in (*TransactionReason, Reason.HAPPY_HOUR, "my_own"):
        request = UserCreditRequest(**valid(UserCreditRequest, reason=reason))
        assert (request.reason, type(request.reason)) == (str(reason), str)


def test_the_standard_reasons_are_these() -> None:
    expected = (
        "top_up bonus admin_credit performance_request menu_purchase performance_completed partial_performance "
        "performance_abandoned user_disconnected model_initiated_refund queue_timeout admin_refund outbid"
    )
    assert set(expected.split()) <= {str(reason) for reason in TransactionReason}


def test_a_huge_value_is_not_printed_in_full() -> None:
    assert sys.get_int_max_str_digits() < 5000, "else the number of 5,000 digits proves nothing"
    for value in (10**5000, "x" * 10**6, {"a": "x" * 10**6}, [Hostile()] * 10**5):
        assert len(str(refusal_of(UserCreditRequest, **valid(UserCreditRequest, metadata=value)))) < 1000

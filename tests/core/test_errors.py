"""The errors: one tree, stable codes, values in ``details``, messages that a person can read."""

import copy
import inspect
import json
import pickle
import re
from datetime import UTC, date, datetime, tzinfo
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest

from points_platform import core
from points_platform.core import (
    BalanceLimitError,
    ClockSkewError,
    DepositConflictError,
    EscrowAlreadyProcessedError,
    EscrowMismatchError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidAuthorizationError,
    InvalidRequestError,
    LedgerDamagedError,
    OptimisticLockError,
    SchemaVersionError,
    StorageUnavailableError,
    WalletError,
    errors,
    refusals,
)
from points_platform.core.errors import Advice
from points_platform.wallets import UserCreditRequest

# Each error with its code, whether it is retryable, and the details that it holds.
TABLE: list[tuple[type[WalletError], str, bool, dict[str, Any]]] = [
    (InvalidRequestError, "invalid_request", False, {"field": "amount", "value": 0, "expected": "at least 1"}),
    (InvalidAuthorizationError, "invalid_authorization", False, {"cause": "expired"}),
    (IdempotencyConflictError, "idempotency_conflict", False, {"key": "key-1", "fields": ("amount", "reason")}),
    (
        DepositConflictError,
        "deposit_conflict",
        False,
        {"source": "bank", "reference": "payment-1", "fields": ("user_id", "amount")},
    ),
    (EscrowNotFoundError, "escrow_not_found", False, {"escrow_id": "escrow-1"}),
    (EscrowAlreadyProcessedError, "escrow_already_processed", False, {"escrow_id": "escrow-1", "status": "settled"}),
    (EscrowMismatchError, "escrow_mismatch", False, {"field": "amount", "expected": 30, "given": 31}),
    (InsufficientBalanceError, "insufficient_balance", False, {"required": 31, "available": 30, "currency": "points"}),
    (
        BalanceLimitError,
        "balance_limit",
        False,
        {"limit": 2**53 - 1, "balance": 2**53 - 1, "amount": 1, "currency": "points"},
    ),
    (OptimisticLockError, "optimistic_lock", True, {"attempts": 4}),
    (ClockSkewError, "clock_skew", True, {"tolerance_s": 5.0}),
    (StorageUnavailableError, "storage_unavailable", True, {"cause": "08006"}),
    (SchemaVersionError, "schema_version", False, {"found": None, "expected": "0001"}),
    (LedgerDamagedError, "ledger_damaged", False, {"what": "position 7 of the log", "position": 7}),
]
EVERY_ERROR = pytest.mark.parametrize(
    ("kind", "code", "retryable", "details"), TABLE, ids=lambda value: value if isinstance(value, str) else ""
)
MESSAGE_LIMIT = 500


@EVERY_ERROR
def test_each_error_has_its_code_its_details_and_a_message_that_shows_them(
    kind: type[WalletError], code: str, retryable: bool, details: dict[str, Any]
) -> None:
    error = kind(**details)
    assert (error.code, error.retryable, error.details) == (code, retryable, details)
    for name, value in details.items():
        # A balance may be somebody else's: whoever may know it finds it in the details.
        assert ((", ".join(value) if isinstance(value, tuple) else str(value)) in str(error)) or name == "balance"
    assert isinstance(error, WalletError)
    assert "{" not in str(error)


@EVERY_ERROR
def test_errors_survive_pickling_and_copying(
    kind: type[WalletError], code: str, retryable: bool, details: dict[str, Any]
) -> None:
    error = kind(**details)
    twins = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in [*twins, copy.copy(error), copy.deepcopy(error)]:
        assert type(twin) is kind
        assert (twin.code, twin.retryable, twin.details) == (code, retryable, details)
        assert str(twin) == str(error)
        assert twin.details is not error.details


def test_the_tree_has_one_root_and_is_flat() -> None:
    assert WalletError.__bases__ == (Exception,)
    assert set(WalletError.__subclasses__()) == {kind for kind, *_ in TABLE}
    assert not any(kind.__subclasses__() for kind, *_ in TABLE)
    assert len({code for _, code, *_ in TABLE}) == len(TABLE)


def test_every_error_is_public_and_drawn_in_the_tree_in_the_order_in_which_they_win() -> None:
    drawn = [line.split()[1] for line in inspect.getdoc(errors).splitlines() if "──" in line]  # type: ignore[union-attr]
    ours = {name: kind for name, kind in vars(refusals).items() if getattr(kind, "__module__", "") == refusals.__name__}
    assert sorted(ours) == sorted(refusals.__all__), "a refusal that is not public"
    place = drawn.index("…")
    drawn[place : place + 1] = ours  # they stand in the order of their file
    assert drawn == [kind.__name__ for kind, *_ in TABLE]
    assert {kind.__name__ for kind, *_ in TABLE} | {"WalletError"} <= set(core.__all__)


@EVERY_ERROR
def test_each_error_explains_itself(
    kind: type[WalletError], code: str, retryable: bool, details: dict[str, Any]
) -> None:
    documented = inspect.getdoc(kind)
    assert documented is not None
    assert all(
        name in documented for name in details.keys() - {"expected"} | {"details"} if kind is not SchemaVersionError
    )


class Hostile:
    """What can be handed in for a value, and must not be trusted when it is shown."""

    def __init__(self, shown: Any) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        if isinstance(self._shown, Exception):
            raise self._shown
        return self._shown  # type: ignore[no-any-return]

    __str__ = __repr__


def nested(width: int, depth: int) -> Any:
    value: Any = "x" * 1000
    for _ in range(depth):
        value = [value] * width
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class LiesAboutItsLength(list[int]):
    def __len__(self) -> int:
        raise RuntimeError("no")

    def __iter__(self) -> Any:
        raise RuntimeError("no")


HOSTILE: dict[str, Any] = {
    "a long text": "x" * 10_000_000,
    "long bytes": b"x" * 10_000_000,
    "a huge number": 10**100_000,
    "a number of 4300 digits": 10**4299,
    "a long list": list(range(1_000_000)),
    "a long dict": {n: n for n in range(100_000)},
    "a wide and deep list": nested(6, 6),
    "a wide and deep dict": {str(n): nested(4, 5) for n in range(4)},
    "a very deep list": nested(1, 100_000),
    "a list in itself": endless(),
    "a set": set(range(100_000)),
    "a repr that raises": Hostile(RuntimeError("no")),
    "a repr that recurses": Hostile(RecursionError()),
    "a repr that is no text": Hostile(42),
    "a long repr": Hostile("x" * 10_000_000),
    "a length that raises": LiesAboutItsLength(),
    "a long class name": type("C" * 10_000, (), {})(),
    "what only calls itself a list": type("list", (), {})(),
    "a template": "{field} {value!r} {0} %s %(field)s",
    "an exception": ValueError("x" * 100_000),
    "surrogates": "\ud800" * 50,
    "control characters": "\0\x1b[31m\r\n\u202e",
    "control characters in a repr": Hostile("line one\nline two\x1b[31m\0"),
    "surrogates in a repr": Hostile("\ud800"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_message_is_one_short_readable_line_whatever_was_handed_in(name: str) -> None:
    value = HOSTILE[name]
    error = InvalidRequestError(field="amount", value=value, expected="a whole number")
    message = str(error)
    assert message.startswith("amount must be a whole number, not ")
    assert len(message) <= MESSAGE_LIMIT
    assert message.isprintable()
    assert message.encode()


class Colour(StrEnum):
    RED = "red"

    def __str__(self) -> str:
        raise RuntimeError("no")


class Number(IntEnum):
    ONE = 1


class Shape(Enum):
    ROUND = ("round", 1)


class Loud(str):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __len__ = __str__  # type: ignore[assignment]


class NoOffset(tzinfo):
    def utcoffset(self, at: datetime | None) -> Any:
        raise RuntimeError("no")

    dst = tzname = utcoffset


MORE_HOSTILE: dict[str, Any] = {
    **HOSTILE,
    "not a number": float("nan"),
    "endless": float("-inf"),
    "a large number": 2**64,
    "a member": Colour.RED,
    "a member that is a number": Number.ONE,
    "a member of tuples": Shape.ROUND,
    "a text that says nothing": Loud("loud"),
    "a time": datetime(2026, 3, 1, tzinfo=UTC),
    "a time without an offset to be had": datetime(2026, 3, 1, tzinfo=NoOffset()),
    "a class": dict,
    "keys that are no text": {(1, 2): {3: None}},
}


@EVERY_ERROR
@pytest.mark.parametrize("name", MORE_HOSTILE)
def test_the_details_are_json_whatever_was_handed_in(
    kind: type[WalletError], code: str, retryable: bool, details: dict[str, Any], name: str
) -> None:
    """In every place of every error, and as strictly as a web framework writes it."""
    for detail in details:
        error = kind(**{**details, detail: MORE_HOSTILE[name]})
        written = json.dumps(error.details, ensure_ascii=False, allow_nan=False).encode()
        assert detail != "value" or len(written) < 1000
        answer = error.to_dict()
        assert json.loads(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()) == answer
        assert answer["message"].isprintable()
        assert json.loads(json.dumps(error.details)) == answer["details"]


@pytest.mark.parametrize("value", [None, True, False, 0, -1, 2**53, 1.5, "", "ana", "x" * 120, "Zoë\n"])
def test_a_plain_value_of_moderate_size_is_told_as_it_is(value: object) -> None:
    error = InvalidRequestError(field="amount", value=value, expected="something else")
    assert (error.details["value"], type(error.details["value"])) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Colour.RED, "red"),
        (Number.ONE, 1),
        (Loud("loud"), "loud"),
        (float("nan"), "nan"),
        (2**64, "18446744073709551616"),
        ("x" * 121, "x" * 119 + "…"),
        ("\ud800", "\\ud800"),
        ((1, 2), "(1, 2)"),
        ({"a": [1]}, "{'a': [1]}"),
        (b"\xff", "b'\\xff'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_other_value_is_told_as_short_text_or_as_what_it_is_made_of(value: object, told: object) -> None:
    error = InvalidRequestError(field="amount", value=value, expected="something else")
    assert (error.details["value"], type(error.details["value"])) == (told, type(told))


def test_other_details_are_told_whole_times_as_iso_text_and_tuples_as_tuples() -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    error = EscrowMismatchError(field="at", expected=at, given=("a", date(2026, 3, 1), Shape.ROUND))
    assert error.details == {
        "field": "at",
        "expected": "2026-03-01T12:00:00+00:00",
        "given": ("a", "2026-03-01", ["round", 1]),
    }
    assert error.to_dict() == {
        "code": "escrow_mismatch",
        "message": str(error),
        "retryable": False,
        "details": {**error.details, "given": ["a", "2026-03-01", ["round", 1]]},
    }


@EVERY_ERROR
def test_an_answer_by_http_is_a_copy_with_code_message_retryable_and_details(
    kind: type[WalletError], code: str, retryable: bool, details: dict[str, Any]
) -> None:
    error = kind(**details)
    answer = error.to_dict()
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in details.items()}
    assert answer == {"code": code, "message": str(error), "retryable": retryable, "details": told}
    answer["details"].clear()
    assert error.details == details
    error.details["index"] = 3  # as an atomic batch does
    assert error.to_dict()["details"]["index"] == 3


def test_the_http_statuses_and_what_is_retryable_are_those_of_the_document() -> None:
    document = (Path(__file__).parents[2] / "docs" / "EMBEDDING.md").read_text()
    rows = re.findall(r"^\| `(\w+Error)` \|.*\| (yes|no|mostly) \| (\d{3}) \|$", document, re.MULTILINE)
    documented = {name: (retryable != "no", int(status)) for name, retryable, status in rows}
    assert documented == {kind.__name__: (kind.retryable, kind.http_status) for kind, *_ in TABLE}


def test_what_a_host_has_added_to_an_error_survives_pickling() -> None:
    error = StorageUnavailableError(cause="42P01", advice=Advice("call {server}", retryable=False), server="somebody")
    error.details["index"] = 3
    error.add_note("while ana paid")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (twin.retryable, twin.details, str(twin)) == (False, error.details, str(error))
        assert twin.__notes__ == ["while ana paid"]


def test_a_request_refuses_a_hostile_value_by_name() -> None:
    for value in HOSTILE.values():
        for field in ("amount", "user_id", "reason", "currency", "metadata"):
            given = {"user_id": "ana", "amount": 1, "reason": "top_up", field: value}
            if field == "metadata" and isinstance(value, dict) and len(value) < 10:
                continue
            if field == "user_id" and isinstance(value, str) and value.isprintable() and len(value) < 129:
                continue
            with pytest.raises(InvalidRequestError) as caught:
                UserCreditRequest(idempotency_key="k", request_id="r", **given)
            assert caught.value.details["field"] == field
            assert len(str(caught.value)) <= MESSAGE_LIMIT


def test_the_longest_identifiers_still_make_short_messages() -> None:
    longest = "i" * 128
    for error in (
        EscrowNotFoundError(escrow_id=longest),
        EscrowAlreadyProcessedError(escrow_id=longest, status="partially_settled"),
        EscrowMismatchError(field="queue_item_id", expected=longest, given=longest),
        IdempotencyConflictError(key=longest, fields=("amount", "reason", "metadata", "currency")),
        DepositConflictError(source=longest, reference=longest, fields=("user_id", "amount", "currency")),
    ):
        assert len(str(error)) <= MESSAGE_LIMIT


def test_the_message_of_an_error_does_not_follow_changes_of_its_details() -> None:
    error = InsufficientBalanceError(required=31, available=30, currency="points")
    error.details["available"] = 1000
    assert str(error) == "31 points are required, 30 are available"


def test_every_error_can_be_caught_by_the_root_and_by_no_other_of_the_tree() -> None:
    for kind, _, _, details in TABLE:
        with pytest.raises(WalletError) as caught:
            raise kind(**details)
        assert [other for other, *_ in TABLE if isinstance(caught.value, other)] == [kind]


ADVICE = {
    "unknown_key": ({"kid": "2026-03"}, "unknown_key, kid 2026-03", "give the verifier the key"),
    "expired": ({}, "(expired)", "sign a fresh one for the same action and send the same request"),
    "not_yet_valid": ({}, "(not_yet_valid)", "compare the clocks"),
    "claim_mismatch": ({"claim": "amount"}, "claim_mismatch, claim amount", "for exactly this action"),
    "missing": ({}, "(missing)", "for exactly this action"),
}


@pytest.mark.parametrize("cause", ADVICE)
def test_a_refused_authorization_says_what_helps(cause: str) -> None:
    details, named, advice = ADVICE[cause]
    message = str(InvalidAuthorizationError(cause=cause, **details))
    assert named in message
    assert advice in message

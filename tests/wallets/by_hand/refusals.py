"""For each operation requests that are wrong in several ways at once, and which refusal wins, written by hand.

A ladder is climbed from a request that is wrong in every way: each rung says what is wrong, its refusal and the
refusal's details, and what is wrong on the rungs below is put right. At its end the request is right, and its key has
been used by nobody.

What is there: ana has 1,000 points available, 1 gem, and holds of 30 for queue-1: ``HELD``, and ``DONE`` and ``OTHER``,
which are over; ben has 5 points by payment-1 of the bank; the user and the model "full" have all the points that they
may have. ``USED`` is a key under which the right request was carried out before, but for what had to be another then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT = 2**53 - 1
UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
ORDER = (
    "invalid_request",
    "invalid_authorization",
    "idempotency_conflict",
    "deposit_conflict",
    "escrow_not_found",
    "escrow_already_processed",
    "escrow_mismatch",
    "insufficient_balance",
    "balance_limit",
)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What is wrong until here, and what that is called. ``signed`` is whether the queue has permitted it."""

    code: str
    wrong: dict[str, Any] = field(default_factory=dict)
    signed: bool = True
    details: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The right request, what it was where the key was used, and the rungs in the order in which they win."""

    right: dict[str, Any]
    used: dict[str, Any] = field(default_factory=dict)
    rungs: Sequence[Rung]


def _invalid(name: str, value: Any) -> Rung:
    return Rung(code="invalid_request", wrong={name: value}, details={"field": name})


def _used(*fields: str) -> Rung:
    """The fields are those that differ from the right request on the rungs below."""
    return Rung(
        code="idempotency_conflict", wrong={"idempotency_key": "USED"}, details={"key": "USED", "fields": fields}
    )


def _mismatch(name: str, given: Any, expected: Any, said: str = "") -> Rung:
    details = {"field": said or name, "expected": expected, "given": given}
    return Rung(code="escrow_mismatch", wrong={name: given}, details=details)


def _insufficient(amount: int) -> Rung:
    details = {"required": amount, "available": 1000, "currency": "points"}
    return Rung(code="insufficient_balance", wrong={"amount": amount}, details=details)


UNSIGNED = Rung(code="invalid_authorization", signed=False, details={"cause": "missing"})
NO_HOLD = [
    Rung(code="escrow_not_found", wrong={"escrow_id": UNKNOWN}, details={"escrow_id": UNKNOWN}),
    Rung(
        code="escrow_already_processed",
        wrong={"escrow_id": "DONE"},
        details={"escrow_id": "DONE", "status": "settled"},
    ),
]
ANOTHER_HOLD = [_mismatch("queue_item_id", "queue-2", "queue-1"), _mismatch("currency", "gems", "points")]
HOLD = {"user_id": "ana", "escrow_id": "HELD", "queue_item_id": "queue-1"}


def _full_model(amount: int) -> Rung:
    """Its balance may be told: the queue decides, and the platform pays it."""
    details = {"limit": LIMIT, "balance": LIMIT, "amount": amount, "currency": "points"}
    return Rung(code="balance_limit", wrong={"model_id": "full"}, details=details)


LADDERS: dict[str, Ladder] = {
    "credit": Ladder(
        right={"user_id": "ana", "amount": 100, "reason": "top_up"},
        rungs=[
            _invalid("reason", "Top up"),
            _used("amount"),
            Rung(
                code="balance_limit",
                wrong={"amount": LIMIT},
                details={"limit": LIMIT, "balance": 1030, "amount": LIMIT, "currency": "points"},
            ),
        ],
    ),
    "deposit": Ladder(
        right={"user_id": "ana", "amount": 100, "reason": "payment", "source": "bank", "reference": "payment-2"},
        used={"reference": "payment-0"},
        rungs=[
            _invalid("source", ""),
            _used("currency", "amount", "reference"),
            Rung(
                code="deposit_conflict",
                wrong={"reference": "payment-1"},
                details={"source": "bank", "reference": "payment-1", "fields": ("user_id", "amount", "currency")},
            ),
            Rung(
                code="balance_limit",
                wrong={"amount": LIMIT, "currency": "gems"},
                details={"limit": LIMIT, "balance": 1, "amount": LIMIT, "currency": "gems"},
            ),
        ],
    ),
    "hold": Ladder(
        right={
            "user_id": "ana",
            "amount": 30,
            "reason": "performance_request",
            "queue_item_id": "queue-1",
            "feature_type": "song",
        },
        rungs=[_invalid("feature_type", "A song"), _used("amount"), _insufficient(1001)],
    ),
    "settle": Ladder(
        right={**HOLD, "model_id": "luna", "amount": 30, "reason": "performance_completed"},
        used={"escrow_id": "OTHER"},
        rungs=[
            _invalid("model_id", "\n"),
            UNSIGNED,
            _used("currency", "escrow_id", "model_id", "amount", "queue_item_id"),
            *NO_HOLD,
            _mismatch("amount", 31, 30),
            *ANOTHER_HOLD,
            _full_model(30),
        ],
    ),
    "refund": Ladder(
        right={**HOLD, "amount": 30, "reason": "queue_timeout"},
        used={"escrow_id": "OTHER"},
        rungs=[
            _invalid("escrow_id", 7),
            UNSIGNED,
            _used("currency", "escrow_id", "amount", "queue_item_id"),
            *NO_HOLD,
            _mismatch("amount", 31, 30),
            *ANOTHER_HOLD,
        ],
    ),
    "partial_settle": Ladder(
        right={
            **HOLD,
            "model_id": "luna",
            "refund_amount": 10,
            "settle_amount": 20,
            "reason": "partial_performance",
        },
        used={"escrow_id": "OTHER"},
        rungs=[
            _invalid("reason", ""),
            UNSIGNED,
            _used("currency", "escrow_id", "model_id", "refund_amount", "queue_item_id"),
            *NO_HOLD,
            Rung(
                code="escrow_mismatch",
                wrong={"refund_amount": 11},
                details={"field": "amount", "expected": 30, "given": 31},
            ),
            *ANOTHER_HOLD,
            _full_model(20),
        ],
    ),
    "spend": Ladder(
        right={"user_id": "ana", "amount": 30, "reason": "purchase", "order_id": "order-7"},
        rungs=[_invalid("order_id", "\0"), _used("amount"), _insufficient(1001)],
    ),
    "transfer": Ladder(
        right={"user_id": "ana", "recipient_id": "ben", "amount": 30, "reason": "gift"},
        rungs=[
            _invalid("recipient_id", "ana"),
            _used("recipient_id", "amount"),
            _insufficient(1001),
            # Nothing is told of what the taker has.
            Rung(
                code="balance_limit",
                wrong={"recipient_id": "full"},
                details={"limit": LIMIT, "amount": 30, "currency": "points"},
            ),
        ],
    ),
    "open": Ladder(
        right={"owner": "user:ana", "reason": "sign_up"},
        rungs=[
            _invalid("owner", "platform:issuer"),
            Rung(
                code="idempotency_conflict",
                wrong={"idempotency_key": "USED", "reason": "another_reason"},
                details={"key": "USED", "fields": ("reason",)},
            ),
        ],
    ),
}

"""Any value in any field of any request: a valid request that is stored and read back equal, or refused by its name."""

import json
import math
from dataclasses import fields
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from points_platform.core import MAX_POINTS, InvalidRequestError
from points_platform.wallets import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    UserCreditRequest,
)
from points_platform.wallets.facts import request_of
from support.world import World

from .values import BAD_TEXTS, NOTHINGS

REQUESTS: list[type[Any]] = [
    UserCreditRequest,
    EscrowHoldRequest,
    EscrowSettleRequest,
    EscrowRefundRequest,
    EscrowPartialSettleRequest,
]
VALID: dict[str, Any] = {
    **dict.fromkeys(("idempotency_key", "request_id", "user_id", "escrow_id", "model_id", "queue_item_id"), "x"),
    **dict.fromkeys(("reason", "feature_type", "currency"), "x"),
    **dict.fromkeys(("amount", "refund_amount", "settle_amount"), 1),
    "metadata": {},
}
FIELDS = [(kind, field.name) for kind in REQUESTS for field in fields(kind)]
numbers = count()

# Every character that there is, also half ones.
any_text = st.text(st.characters(exclude_categories=()), max_size=140)
printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=100).filter(str.isprintable)
code = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
points = st.integers(1, 2**40)
plain = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
json_object = st.dictionaries(
    st.text(max_size=20),
    st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)
# By number, since hypothesis would like to show what nobody can.
ODD = [*NOTHINGS, *BAD_TEXTS, math.nan, math.inf, Decimal(1), 2**70, 10**4299, 10**4300, -0.0]
odd_leaf = st.integers(0, len(ODD) - 1).map(lambda number: ODD[number])
odd_key = any_text | st.integers() | st.none() | st.booleans() | st.floats() | st.binary()
odd_object = st.recursive(
    odd_leaf | any_text | plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_key, inner, max_size=4) | st.tuples(inner),
    max_leaves=12,
)
anything = (
    *(any_text, odd_leaf, printable, code, odd_object, json_object, st.integers(), points),
    *(
        st.integers(MAX_POINTS - 1, MAX_POINTS + 2),
        st.floats(),
        st.decimals(),
        st.fractions(),
        st.binary(),
        st.datetimes(),
    ),
    *(odd_leaf, st.integers(0, 60).map(lambda n: nested(n)), st.complex_numbers()),
)


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value} if depth % 2 else {"a": [value]}
    return value


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(where=st.sampled_from(FIELDS), value=st.one_of(*anything))
def test_any_value_is_valid_or_refused_by_the_name_of_its_field(where: tuple[type[Any], str], value: Any) -> None:
    kind, name = where
    valid = {field.name: VALID[field.name] for field in fields(kind)}
    try:
        request = kind(**valid | {name: value})
    except InvalidRequestError as refusal:
        told = {
            "field": refusal.details["field"],
            "printable": str(refusal).isprintable(),
            "long": len(str(refusal)) > 1000,
        }
        assert told == {"field": name, "printable": True, "long": False}
        return
    taken = getattr(request, name)
    assert type(taken) in (
        {type(None), str} if name == "currency" else {type(None), dict} if name == "metadata" else {type(VALID[name])}
    )
    assert kind(**vars(request)) == request, "what was taken is taken again"
    if name == "metadata":
        assert json.loads(json.dumps(taken)) == taken
        assert taken == value or value is None
    elif isinstance(value, str):
        assert taken == str.__str__(value)
    else:
        assert taken is value


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    texts=st.lists(printable, min_size=5, max_size=5),
    codes=st.lists(code, min_size=3, max_size=3),
    amount=points,
    metadata=st.none() | json_object,
    ending=st.sampled_from(("settle", "refund", "partial_settle")),
    batch=st.booleans(),
)
def test_what_is_valid_is_stored_answered_and_read_back_equal(
    world: World, texts: list[str], codes: list[str], amount: int, metadata: Any, ending: str, batch: bool
) -> None:
    key, request_id, user, model, queue_item = texts
    reason, feature_type, currency = codes
    user_id = f"{next(numbers)} {user}"
    common: dict[str, Any] = {"user_id": user_id, "request_id": request_id, "reason": reason, "metadata": metadata}
    common |= {"idempotency_key": key, "currency": currency}
    credit = world.credit_request(amount=amount + 1, **common)
    hold = world.hold_request(amount=amount + 1, queue_item_id=queue_item, feature_type=feature_type, **common)
    held = _sent(world, credit, batch) and _sent(world, hold, batch)
    make: Any = getattr(world, f"{ending}_request")
    amounts = {"refund_amount": 1, "settle_amount": amount} if ending == "partial_settle" else {"amount": amount + 1}
    model_id = {} if ending == "refund" else {"model_id": model}
    end = make(held.escrow_id, **amounts, **model_id, queue_item_id=queue_item, **common)
    _sent(world, end, batch=False)
    item = world.wallets.get_escrow(held.escrow_id, user_id)
    said = (item.user_id, item.queue_item_id, item.feature_type, item.reason, item.currency, item.metadata, item.amount)
    assert said == (user_id, queue_item, feature_type, reason, currency, metadata, amount + 1)
    balance = world.wallets.get_user_balance(user_id, currency)
    assert (balance.available, balance.escrow) == (item.refunded_amount, 0)


def _sent(world: World, request: Any, batch: bool) -> Any:
    """Sent, answered again the same from the ledger, and what the ledger has is the request."""
    batches: dict[type, Any] = {
        UserCreditRequest: world.wallets.credit_many,
        EscrowHoldRequest: world.wallets.hold_many,
    }
    many: Any = batches.get(type(request))
    response = many([request])[0] if batch else world.send(request)
    again = world.send(request, world.service())
    assert (again, again.replayed) == (response, True)
    transaction = world.ledger.transaction(response.transaction_id)
    assert transaction is not None
    assert request_of(transaction) == request
    return response


def test_a_refused_value_changes_nothing_wherever_a_request_could_be(world: World) -> None:
    world.credit()
    escrow_id = world.hold().escrow_id
    before, wallets = world.snapshot(), world.wallets
    settle = world.settle_request(escrow_id)
    permission = world.authorize(settle)
    for wrong in [*NOTHINGS, *BAD_TEXTS, None, permission, UserCreditRequest, vars(settle)]:
        for ask in (
            lambda given: wallets.credit_user(given),
            lambda given: wallets.hold_in_escrow(given),
            lambda given: wallets.settle_escrow(given, permission),
            lambda given: wallets.refund_escrow(given, permission),
            lambda given: wallets.partial_settle_escrow(given, permission),
            lambda given: wallets.credit_many([given], atomic=True),
            lambda given: wallets.settle_many([(given, permission)], atomic=True),
            lambda given: wallets.refund_many([given], atomic=True),
        ):
            with pytest.raises(InvalidRequestError) as refused:
                ask(wrong)
            assert refused.value.details["field"] in {"request", "requests"}
    assert world.snapshot() == before

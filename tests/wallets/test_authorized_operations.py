"""No escrow item leaves ``held`` without the queue's signed permission for exactly that.

Every attack is made through the service, on both engines. A refused one reaches the database with no
statement at all, so nothing has moved, no key is used up, and nothing is announced.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from freezegun import freeze_time
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from points_platform.core import (
    EscrowAlreadyProcessedError,
    EscrowMismatchError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InvalidAuthorizationError,
    InvalidRequestError,
    WalletError,
)
from points_platform.queue import AuthorizationVerifier, QueueAuthorizer
from points_platform.wallets import QueueSettlementAuthorization
from support.world import SECRET, World

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
OPERATIONS = ["settle", "refund", "partial_settle"]
every_operation = pytest.mark.parametrize("operation", OPERATIONS)


def request_for(world: World, operation: str, escrow_id: str, **changes: Any) -> Any:
    make: dict[str, Callable[..., Any]] = {
        "settle": world.settle_request,
        "refund": world.refund_request,
        "partial_settle": world.partial_settle_request,
    }
    return make[operation](escrow_id, **changes)


def funded(world: World, operation: str, **changes: Any) -> Any:
    """A request for a hold that is there."""
    world.credit()
    return request_for(world, operation, world.hold().escrow_id, **changes)


@contextmanager
def counted_statements(world: World) -> Iterator[list[str]]:
    statements: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    event.listen(world.database.engine, "before_cursor_execute", count)
    yield statements
    event.remove(world.database.engine, "before_cursor_execute", count)


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def resigned(authorization: Any, changes: dict[str, Any], header: dict[str, Any], secret: bytes | str = SECRET) -> Any:
    """The authorization with other claims, signed by hand; ``...`` leaves a claim out."""
    head = jwt.get_unverified_header(authorization.token) | header
    claims = jwt.decode(authorization.token, options={"verify_signature": False}) | changes
    kept = [{name: value for name, value in each.items() if value is not ...} for each in (head, claims)]
    message = ".".join(part(json.dumps(each).encode()) for each in kept)
    key = secret.encode() if isinstance(secret, str) else secret
    return replace(authorization, token=f"{message}.{part(hmac.new(key, message.encode(), hashlib.sha256).digest())}")


class Duck:
    """Has what an authorization has, and is none."""

    def __init__(self, genuine: Any) -> None:
        self.__dict__.update(vars(genuine))


@dataclass(frozen=True, kw_only=True, repr=False)
class Subclassed(QueueSettlementAuthorization):
    """Not exactly the kind that is asked for."""


def other(value: Any) -> Any:
    return value + 1 if type(value) is int else f"{value}x"


def attacks(world: World, request: Any) -> Iterator[tuple[str, set[str], Any]]:
    """What a thief may send along with the request: a name, the causes it may be refused for, the object."""
    genuine = world.authorize(request)
    yield from _forged_claims(genuine)
    yield from _forged_headers(genuine)
    yield from _signed_for_something_else(world, request)
    yield from _deformed(genuine)
    yield from _wrong_envelopes(world, request, genuine)


def _forged_claims(genuine: Any) -> Iterator[tuple[str, set[str], Any]]:
    claims = jwt.decode(genuine.token, options={"verify_signature": False})
    every_cause = {"claim_mismatch", "malformed", "issuer", "audience", "expired", "not_yet_valid", "claim_missing"}
    for claim, value in claims.items():
        for absent in (..., None):
            yield f"{claim} is {absent}", {"claim_missing"}, resigned(genuine, {claim: absent}, {})
        forged = [True, False, [value], {"is": value}, "", -1, 10**400, float("inf"), float("nan"), float(2**60)]
        forged += [float(value), str(value)] if type(value) is int else [1]
        if claim not in {"jti", "iat", "nbf", "exp"}:
            forged.append(other(value))
        for instead in forged:
            yield f"{claim} = {instead!r}", every_cause, resigned(genuine, {claim: instead}, {})


def _forged_headers(genuine: Any) -> Iterator[tuple[str, set[str], Any]]:
    kid = jwt.get_unverified_header(genuine.token)["kid"]
    for algorithm in ("none", "HS512", "RS256", "ES256", "EdDSA", "hs256", "", None, ...):
        yield f"alg {algorithm}", {"algorithm"}, resigned(genuine, {}, {"alg": algorithm})
    for name, causes in {
        "unknown": {"unknown_key"},
        ...: {"unknown_key"},
        1: {"malformed"},
        None: {"malformed"},
    }.items():
        yield f"kid {name}", causes, resigned(genuine, {}, {"kid": name})
    extensions: list[dict[str, Any]] = [
        {"crit": ["exp"]},
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
        {"crit": []},
    ]
    for header in extensions:
        yield f"header {header}", {"malformed"}, resigned(genuine, {}, header)
    for secret in (b"", kid, "the secret of somebody else, 32 bytes", SECRET[:-1], SECRET + " "):
        yield f"signed with {secret!r}", {"signature"}, resigned(genuine, {}, {}, secret)


def _signed_for_something_else(world: World, request: Any) -> Iterator[tuple[str, set[str], Any]]:
    """Genuine permissions, each for something that differs in one field."""
    genuine = world.authorize(request)
    fields_of_the_action = {field.name for field in fields(genuine)} - {"token", "issued_at", "expires_at"}
    for name in sorted(fields_of_the_action):
        changed = world.authorize(request, **{name: other(getattr(request, name))})
        yield f"for another {name}", {"claim_mismatch"}, changed
        dressed = replace(changed, **{name: getattr(request, name)})
        yield f"for another {name}, in an envelope that suits", {"claim_mismatch"}, dressed
    strangers = QueueAuthorizer("the secret of another platform, 32 bytes")
    action = {name: getattr(request, name) for name in fields_of_the_action}
    for stranger in (strangers, QueueAuthorizer(SECRET, issuer="x"), QueueAuthorizer(SECRET, audience="x")):
        sign: dict[str, Callable[..., Any]] = {
            "settle": stranger.authorize_settlement,
            "refund": stranger.authorize_refund,
            "partial_settle": stranger.authorize_partial_settlement,
        }
        yield "of a stranger", {"unknown_key", "issuer", "audience"}, sign[genuine.action](**action)
    for age, cause in {86_400: "expired", 305: "expired", -6: "not_yet_valid", -86_400: "not_yet_valid"}.items():
        with freeze_time(NOW - timedelta(seconds=age)):
            authorization = world.authorize(request)
        yield f"signed {age} seconds ago", {cause}, authorization


def _deformed(genuine: Any) -> Iterator[tuple[str, set[str], Any]]:
    token = genuine.token
    header, claims, signature = token.split(".")
    yield "no token", {"missing"}, replace(genuine, token=None)
    yield "an empty token", {"missing"}, replace(genuine, token="")
    texts = [f"{token}=", f"{token}==", f"{token}\n", f" {token}", f"{token}.", f".{token}", f"{token}.{signature}"]
    texts += [f"{header}.{claims}", f"{header}.{claims}.", f"{header}..{signature}", "..", "x", f"Bearer {token}"]
    texts += [f"{token[:-1]}é", f"{token[:-1]}\ud800", token + "A" * 100_000, token.replace(".", "\n.")]
    for wrong in [*texts, token.encode(), 42, [token], True, object()]:
        yield f"token {str(wrong)[:40]!r}…", {"malformed"}, replace(genuine, token=wrong)
    for place in range(0, len(token) - 1, 11):
        flipped = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        yield (
            f"character {place} changed",
            {"malformed", "unknown_key", "algorithm", "signature"},
            replace(genuine, token=flipped),
        )


def _wrong_envelopes(world: World, request: Any, genuine: Any) -> Iterator[tuple[str, set[str], Any]]:
    yield "nothing", {"missing"}, None
    for field in fields(genuine):
        if field.name != "token":
            value = getattr(genuine, field.name)
            wrong = value + timedelta(seconds=1) if isinstance(value, datetime) else other(value)
            for written in (wrong, None, str(value) + " ", value.__class__):
                envelope = replace(genuine, **{field.name: written})
                yield f"{field.name} on the envelope is {written!r}", {"envelope_mismatch"}, envelope
    for others in OPERATIONS:
        if others != genuine.action:
            wrong_kind = world.authorize(request_for(world, others, request.escrow_id))
            yield f"an authorization to {others}", {"claim_mismatch"}, wrong_kind
            token = replace(genuine, token=wrong_kind.token)
            yield f"the token of a permission to {others}", {"claim_mismatch", "claim_missing"}, token
    for nothing in (Duck(genuine), genuine.token, vars(genuine), type(genuine), 42, True, object()):
        yield f"a {type(nothing).__name__}", {"claim_mismatch"}, nothing
    if isinstance(genuine, QueueSettlementAuthorization):
        yield "a subclass", {"claim_mismatch"}, Subclassed(**vars(genuine))


def refused(world: World, request: Any, authorization: Any, **options: Any) -> str | None:
    """The cause of the refusal; ``None`` if the operation was carried out."""
    try:
        world.send(request, authorization=authorization, **options)
    except InvalidAuthorizationError as error:
        return str(error.details["cause"])
    return None


@every_operation
def test_no_forgery_moves_a_point_uses_up_the_key_or_is_announced(world: World, operation: str) -> None:
    """Neither before the operation, nor where the answer would come from the cache or from the ledger."""
    with freeze_time(NOW):
        request = funded(world, operation)
        for carried_out in (False, True):
            before, announced = world.snapshot(), len(world.events)
            with counted_statements(world) as statements:
                tried = 0
                for wallets in (world.wallets, world.service()):
                    for name, causes, forged in attacks(world, request):
                        assert refused(world, request, forged, wallets=wallets) in causes, name
                        tried += 1
            assert tried > 200
            assert statements == []
            assert (world.snapshot(), len(world.events)) == (before, announced)
            assert world.send(request).replayed is carried_out


@every_operation
def test_in_the_callers_transaction_a_forgery_reaches_the_database_neither(world: World, operation: str) -> None:
    request = funded(world, operation)
    with Session(world.database.engine) as session, counted_statements(world) as statements:
        for forged in (
            None,
            replace(world.authorize(request), token="x.y.z"),
            world.authorize(request, reason="bonus"),
        ):
            assert refused(world, request, forged, session=session)
        assert statements == []
        assert not session.in_transaction()
        assert world.send(request, session=session).replayed is False
        session.commit()


@every_operation
def test_the_permissions_id_is_recorded_with_the_transaction(world: World, operation: str) -> None:
    request = funded(world, operation)
    authorization = world.authorize(request)
    response = world.send(request, authorization=authorization)
    transaction = world.ledger.transaction(response.transaction_id)
    claims = jwt.decode(authorization.token, options={"verify_signature": False})
    assert transaction is not None
    assert transaction.authorization_id == claims["jti"] == world.events[-1].authorization_id  # type: ignore[attr-defined]


@every_operation
def test_a_token_works_once_whatever_the_key(world: World, operation: str) -> None:
    request = funded(world, operation)
    authorization = world.authorize(request)
    world.send(request, authorization=authorization)
    before = world.snapshot()
    with pytest.raises(EscrowAlreadyProcessedError):
        world.send(replace(request, idempotency_key="another"), authorization=authorization)
    assert world.snapshot() == before


@every_operation
def test_a_token_for_one_hold_is_none_for_its_twin(world: World, operation: str) -> None:
    world.credit()
    first, second = (request_for(world, operation, world.hold().escrow_id) for _ in range(2))
    before = world.snapshot()
    assert refused(world, second, world.authorize(first)) == "claim_mismatch"
    assert world.snapshot() == before


@every_operation
def test_a_retry_needs_a_valid_token_but_not_the_same_one(world: World, operation: str) -> None:
    with freeze_time(NOW) as clock:
        request = funded(world, operation)
        stale = world.authorize(request)
        first = world.send(request, authorization=stale)
        clock.tick(timedelta(minutes=5, seconds=5))
        for wallets in (world.wallets, world.service()):
            assert refused(world, request, stale, wallets=wallets) == "expired"
            repeated = world.send(request, wallets, authorization=world.authorize(request))
            assert (repeated, repeated.replayed) == (first, True)
    recorded = world.ledger.transaction(first.transaction_id)
    assert recorded is not None
    claims = jwt.decode(stale.token, options={"verify_signature": False})
    assert recorded.authorization_id == claims["jti"], "the permission that was used, not the one of the retry"


@every_operation
def test_a_token_is_judged_when_it_is_used_with_the_configured_leeway(world: World, operation: str) -> None:
    with freeze_time(NOW) as clock:
        request = funded(world, operation)
        authorization = world.authorize(request)
        patient = world.service(authorizer=QueueAuthorizer(SECRET, leeway=timedelta(seconds=10)))
        clock.tick(timedelta(minutes=5, seconds=9))
        assert refused(world, request, authorization) == "expired"
        assert refused(world, request, authorization, wallets=patient) is None


@every_operation
def test_a_refused_token_is_refused_before_anything_else_that_is_wrong(world: World, operation: str) -> None:
    request = funded(world, operation)
    world.send(request)
    wrong: dict[type[WalletError], Any] = {
        IdempotencyConflictError: replace(request, reason="bonus"),
        EscrowAlreadyProcessedError: replace(request, idempotency_key="k-1"),
        EscrowNotFoundError: replace(request, idempotency_key="k-2", escrow_id="no-such-item"),
        EscrowMismatchError: replace(
            request, idempotency_key="k-3", escrow_id=world.hold().escrow_id, queue_item_id="queue-2"
        ),
    }
    before = world.snapshot()
    for error, other_request in wrong.items():
        assert refused(world, other_request, None) == "missing"
        with pytest.raises(error):
            world.send(other_request)
    assert world.snapshot() == before


@every_operation
def test_a_request_of_the_wrong_kind_is_refused_before_its_token(world: World, operation: str) -> None:
    request = funded(world, operation)
    method = getattr(world.wallets, f"{operation}_escrow")
    others = [request_for(world, name, request.escrow_id) for name in OPERATIONS if name != operation]
    for wrong in (*others, world.hold_request(), world.credit_request(), None, vars(request), Duck(request)):
        with pytest.raises(InvalidRequestError) as caught:
            method(wrong, None)
        assert caught.value.details["field"] == "request"


@pytest.mark.parametrize(
    "private", [Ed25519PrivateKey.generate(), generate_private_key(SECP256R1())], ids=["EdDSA", "ES256"]
)
def test_the_wallet_side_needs_public_keys_only(world: World, private: Any) -> None:
    queue = QueueAuthorizer(private)
    wallets = world.service(authorizer=AuthorizationVerifier([private.public_key()]))
    world.credit()
    for operation in OPERATIONS:
        request = request_for(world, operation, world.hold().escrow_id)
        assert refused(world, request, world.authorize(request), wallets=wallets) == "unknown_key"
        signed = World(world.database, authorizer=queue).authorize(request)
        assert refused(world, request, signed) == "unknown_key"
        assert refused(world, request, signed, wallets=wallets) is None
    assert world.wallets.get_model_balance("luna").earned == 50


def test_holds_and_credits_need_no_permission_and_can_not_settle(world: World) -> None:
    world.credit()
    world.hold()
    with world.database.engine.connect() as connection:
        ids = set(connection.scalars(text("SELECT authorization_id FROM ledger_transactions")))
    assert ids == {None}


@every_operation
def test_swapped_arguments_do_not_show_the_token(world: World, operation: str) -> None:
    request = funded(world, operation)
    authorization = world.authorize(request)
    method = getattr(world.wallets, f"{operation}_escrow")
    for instead in (authorization, authorization.token):
        with pytest.raises(InvalidRequestError) as caught:
            method(instead, request)
        shown = f"{caught.value} {caught.value!r} {caught.value.details}"
        assert authorization.token[-30:] not in shown

"""An envelope that is made from a token says what the token says; whether that counts is the verifier's to judge."""

import json
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from points_platform.core import InvalidAuthorizationError
from points_platform.queue import AuthorizationVerifier, QueueAuthorizer
from points_platform.wallets import QueueAuthorization, QueueSettlementAuthorization
from points_platform.wallets.operations import OPERATIONS
from support.jwks import base64url
from support.world import World

SECRET = "the secret that the tests sign with, 2026"
AUTHORIZER = QueueAuthorizer(SECRET)
ACTION: dict[str, Any] = {
    "queue_item_id": "Schlange \u00e4 \U0001f600",
    "escrow_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "user_id": "ana",
    "model_id": "luna",
    "reason": "performance_completed",
    "amount": 30,
}
GENUINE = AUTHORIZER.authorize_settlement(**ACTION)
CLAIMS = jwt.decode(GENUINE.token, options={"verify_signature": False})
KINDS: list[type[QueueAuthorization]] = [
    operation.authorization for operation in OPERATIONS if operation.authorization is not None
]

EVERY: list[type[QueueAuthorization]] = [QueueAuthorization, *KINDS]


def token_of(claims: Any, header: Any = None) -> str:
    """A token that nobody has signed."""
    parts = ({"alg": "HS256", "typ": "JWT"} if header is None else header, claims)
    head, body = (base64url(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in parts)
    return f"{head}.{body}.{base64url(b'nobody')}"


def refusal(token: Any, kind: type[QueueAuthorization] = QueueAuthorization) -> dict[str, Any]:
    with pytest.raises(InvalidAuthorizationError) as caught:
        kind.from_token(token)
    return caught.value.details


def test_the_envelope_is_the_one_that_the_queue_made(world: World) -> None:
    world.credit(amount=90)
    for name in ("settle", "refund", "partial_settle"):
        request = getattr(world, f"{name}_request")(world.hold(amount=30).escrow_id)
        genuine = world.authorize(request)
        for kind in (QueueAuthorization, type(genuine)):
            made = kind.from_token(genuine.token)
            assert (type(made), made) == (type(genuine), genuine)
        world.send(request, authorization=made)
    assert world.wallets.get_user_balance("ana").escrow == 0


def test_each_operation_that_the_queue_decides_on_is_found_by_its_action() -> None:
    assert len(KINDS) >= 3
    for kind in KINDS:
        value = {field.name: 1 if field.name.endswith("amount") else "x" for field in fields(kind)}
        claims = {**value, "sub": "x", "iat": 1, "exp": 2, "action": kind.action}
        assert type(QueueAuthorization.from_token(token_of(claims))) is kind


def test_nothing_is_verified_and_the_verifier_refuses_what_nobody_signed() -> None:
    for forged in (token_of(CLAIMS), token_of(CLAIMS, {"alg": "none"}), token_of({**CLAIMS, "amount": 31, "exp": 5})):
        envelope = QueueAuthorization.from_token(forged)
        assert isinstance(envelope, QueueSettlementAuthorization)
        with pytest.raises(InvalidAuthorizationError):
            AUTHORIZER.verify(envelope, QueueSettlementAuthorization, {**ACTION, "amount": envelope.amount})


def test_it_is_judged_as_any_other() -> None:
    stranger = QueueAuthorizer(Ed25519PrivateKey.generate())
    expired = replace(GENUINE, token=jwt.encode({**CLAIMS, "exp": CLAIMS["iat"]}, SECRET, headers=_header()))
    for token, cause in ((stranger.authorize_settlement(**ACTION).token, "unknown_key"), (expired.token, "expired")):
        with pytest.raises(InvalidAuthorizationError) as caught:
            AUTHORIZER.verify(QueueAuthorization.from_token(token), QueueSettlementAuthorization, ACTION)
        assert caught.value.details["cause"] == cause
    verifier = AuthorizationVerifier([SECRET], leeway=timedelta(days=1))
    assert verifier.verify(QueueAuthorization.from_token(expired.token), QueueSettlementAuthorization, ACTION)


def _header() -> dict[str, Any]:
    header: dict[str, Any] = jwt.get_unverified_header(GENUINE.token)
    return header


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_missing(token: Any) -> None:
    for kind in EVERY:
        assert refusal(token, kind) == {"cause": "missing"}


HEAD, BODY, SIGNATURE = GENUINE.token.split(".")
UNREADABLE: dict[str, Any] = {
    "a word": "token",
    "two parts": f"{HEAD}.{BODY}",
    "four parts": f"{GENUINE.token}.{SIGNATURE}",
    "padding": f"{GENUINE.token}=",
    "a line end": f"{GENUINE.token}\n",
    "with its scheme": f"Bearer {GENUINE.token}",
    "another alphabet": f"{HEAD}.{BODY}.\u0430",
    "a lone surrogate": f"{GENUINE.token}\ud800",
    "too long": f"{GENUINE.token}{'A' * 20_000}",
    "bytes": GENUINE.token.encode(),
    "a number": 5,
    "a list": [GENUINE.token],
    "an envelope": GENUINE,
    "a header that is no JSON": f"AAAA.{BODY}.{SIGNATURE}",
    "a header that is no object": token_of(CLAIMS, []),
    "a kid that is no text": token_of(CLAIMS, {"alg": "HS256", "kid": 5}),
    "a critical extension": token_of(CLAIMS, {"alg": "HS256", "crit": ["x"]}),
    "a payload that is no JSON": f"{HEAD}.AAAA.{SIGNATURE}",
    "a payload that is no object": token_of([CLAIMS]),
    "a payload that is cut off": token_of(json.dumps(CLAIMS).encode()[:-9]),
    "a payload that is no text": token_of(b"\xff\xfe"),
    "a deep payload": token_of(b"[" * 9000),
    "a payload of nothing": token_of(b"null"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_token_that_cannot_be_read_is_malformed(name: str) -> None:
    for kind in EVERY:
        assert refusal(UNREADABLE[name], kind) == {"cause": "malformed"}


READ = sorted(CLAIMS.keys() - {"iss", "aud", "jti", "nbf"})


@pytest.mark.parametrize("claim", READ)
def test_a_claim_that_is_missing_is_named(claim: str) -> None:
    without = {name: value for name, value in CLAIMS.items() if name != claim}
    for claims in (without, {**CLAIMS, claim: None}):
        for kind in (QueueAuthorization, QueueSettlementAuthorization):
            assert refusal(token_of(claims), kind) == {"cause": "claim_missing", "claim": claim}


@pytest.mark.parametrize("claim", [claim for claim in READ if claim != "action"])
def test_a_claim_that_no_authorization_has_is_named(claim: str) -> None:
    values: list[Any] = [True, [], {}, 1.5, "", "x" * 200, "a\0", -1, 2**60, 10**400, float("nan")]
    for value in values:
        assert refusal(token_of({**CLAIMS, claim: value})) == {"cause": "malformed", "claim": claim}, value


@pytest.mark.parametrize("action", ["hold", "credit", "", "SETTLE", "settle ", 1, True, [], {"settle": 1}, 1.5])
def test_an_action_that_the_queue_does_not_decide_on_is_refused(action: Any) -> None:
    for kind in (QueueAuthorization, QueueSettlementAuthorization):
        assert refusal(token_of({**CLAIMS, "action": action}), kind) == {"cause": "claim_mismatch", "claim": "action"}


def test_the_token_of_another_action_is_none_of_this_class() -> None:
    for kind in KINDS:
        if kind is not QueueSettlementAuthorization:
            assert refusal(GENUINE.token, kind) == {"cause": "claim_mismatch", "claim": "action"}

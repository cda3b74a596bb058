"""Tokens and envelopes that somebody forged: each refused, as an authorization is and in no other way."""

import base64
import hmac
import math
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from random import Random
from typing import Any

import jwt
import pytest

from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, QueueAuthorizer
from support.world import SECRET
from torture import tokens
from torture.tokens import ACTIONS, Accepted, Mint, attack, welch_t

from .values import BAD_TEXTS, NOTHINGS, Text

MINT = Mint(Random(7))
every_genuine = pytest.mark.parametrize(
    "genuine", MINT.genuine, ids=[f"{each.kind.action} by {each.header['alg']}" for each in MINT.genuine]
)


# ── tokens ──


def test_no_forged_token_is_accepted() -> None:
    counts = attack(10_000, seed=2026)
    twins = counts.pop("es256 twin")
    assert (sum(counts.values()), twins) == (10_000, len(ACTIONS))
    assert counts.keys() == {"signature", "malformed", "unknown_key", "algorithm", "claim_mismatch", "claim_missing"}


@pytest.mark.parametrize("forge", tokens.FORGERIES, ids=lambda forge: forge.__name__.strip("_"))
def test_the_attack_would_see_an_accepted_token(forge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that accepts anything is found out by each kind of forgery."""
    mint = Mint(Random(1))
    monkeypatch.setattr(mint.verifier, "verify", lambda *given: mint.genuine[0].id)
    with pytest.raises(Accepted, match="accepted"):
        tokens._refusal(mint, forge)


@pytest.mark.parametrize("error", [ValueError, RecursionError, jwt.PyJWTError, InvalidRequestError])
def test_the_attack_would_see_any_other_exception(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*given: object) -> str:
        raise error(**{"field": "token", "value": 1, "expected": "x"} if error is InvalidRequestError else {})

    mint = Mint(Random(1))
    monkeypatch.setattr(mint.verifier, "verify", verify)
    with pytest.raises(Accepted, match=error.__name__):
        tokens._refusal(mint, tokens._flipped)


# ── whatever is not a text, or is one with ideas of its own ──


def refusal(genuine: tokens.Genuine, **changes: Any) -> dict[str, Any]:
    with pytest.raises(InvalidAuthorizationError) as refused:
        MINT.verifier.verify(replace(genuine.authorization, **changes), genuine.kind, ACTIONS[genuine.kind])
    return refused.value.details


@every_genuine
def test_whatever_stands_for_the_token_is_refused(genuine: tokens.Genuine) -> None:
    for wrong in [*NOTHINGS, *BAD_TEXTS]:
        assert refusal(genuine, token=wrong)["cause"] in {"missing", "malformed"}


@every_genuine
def test_a_token_is_its_characters_whatever_its_methods_say(genuine: tokens.Genuine) -> None:
    authorization = replace(genuine.authorization, token=Text(genuine.token))
    assert MINT.verifier.verify(authorization, genuine.kind, ACTIONS[genuine.kind]) == genuine.id
    assert refusal(genuine, token=Text(genuine.token[:-4]))["cause"] in {"signature", "malformed"}


@every_genuine
def test_whatever_is_written_on_the_envelope_is_refused(genuine: tokens.Genuine) -> None:
    for field in fields(genuine.authorization):
        for wrong in [*NOTHINGS, *BAD_TEXTS] if field.name != "token" else ():
            assert refusal(genuine, **{field.name: wrong})["cause"] == "envelope_mismatch", (field.name, type(wrong))


@every_genuine
def test_an_envelope_with_nothing_on_it_is_refused(genuine: tokens.Genuine) -> None:
    bare, action = object.__new__(genuine.kind), ACTIONS[genuine.kind]
    for more, cause in (
        ({}, "missing"),
        ({"token": None}, "missing"),
        ({"token": genuine.token}, "envelope_mismatch"),
        (action, "envelope_mismatch"),
        ({"issued_at": genuine.authorization.issued_at}, "envelope_mismatch"),
    ):
        vars(bare).update(more)
        with pytest.raises(InvalidAuthorizationError) as refused:
            MINT.verifier.verify(bare, genuine.kind, action)
        assert refused.value.details["cause"] == cause
    assert "token" not in repr(bare)


# ── keys, and who may use them ──


NO_KEYS = [*NOTHINGS, Text(""), Text("-----BEGIN PUBLIC KEY-----\n"), Text("a secret of somebody"), "\ud800"]


@pytest.mark.parametrize("key", NO_KEYS, ids=lambda key: type(key).__name__)
def test_whatever_is_no_key_is_refused_and_not_shown(key: Any) -> None:
    for make in (AuthorizationKey.of, QueueAuthorizer, lambda given: AuthorizationVerifier([given])):
        with pytest.raises(InvalidRequestError) as refused:
            make(key)
        assert refused.value.details["field"] == "key"
        assert refused.value.details["value"] is not key


def test_a_secret_is_its_characters_whatever_its_methods_say() -> None:
    assert AuthorizationKey.of(Text(SECRET)) == AuthorizationKey.of(SECRET)


@pytest.mark.parametrize("name", ["issuer", "audience", "leeway"])
def test_options_of_a_verifier_are_refused_by_name(name: str) -> None:
    for wrong in [*NOTHINGS, *BAD_TEXTS]:
        if name != "leeway" or type(wrong) is not timedelta:
            with pytest.raises(InvalidRequestError) as refused:
                QueueAuthorizer(SECRET, **{name: wrong})
            assert refused.value.details["field"] == name


# ── how signatures are compared ──


def test_an_hmac_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is observed is the standard library's comparison, with both signatures in full."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def observe(given: Any, made: Any) -> bool:
        compared.append((given, made))
        return compare(given, made)

    monkeypatch.setattr(hmac, "compare_digest", observe)
    genuine = next(each for each in MINT.genuine if each.header["alg"] == "HS256")
    start, _, text = genuine.token.rpartition(".")
    made = base64.urlsafe_b64decode(text + "=")
    for place in (0, 15, 31):
        given = made[:place] + bytes([made[place] ^ 1]) + made[place + 1 :]
        assert refusal(genuine, token=f"{start}.{tokens.part(given)}") == {"cause": "signature"}
        assert compared == [(given, made)]
        compared.clear()


def test_welchs_t_is_that_of_the_textbook() -> None:
    # Means 2 and 4, variances 1 and 4.
    left, right = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]
    assert math.isclose(welch_t(left, right), -2 / math.sqrt(5 / 3))
    assert welch_t([1.0], right) == welch_t([1.0, 1.0], [1.0, 1.0]) == 0.0


def test_the_measurement_sees_a_comparison_that_stops_early() -> None:
    """The figure itself is for the long form; only that its control is far off is beyond chance."""
    measured = tokens.timing(seed=1, samples=3000)
    assert measured.samples == 3000
    assert measured.control > 4.5

"""Tokens and envelopes that somebody forged: each refused, as an authorization is and in no other way."""

import base64
import contextlib
import hmac
import json
import math
import os
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, KeyFile, QueueAuthorizer
from points_platform.wallets import QueueAuthorization
from support.jwks import public_jwk, public_pem, secret_jwk
from support.world import SECRET
from torture import tokens
from torture.tokens import ACTIONS, Accepted, Mint, attack, unpart, welch_t

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


# ── what everybody may know is no secret ──

ED25519, P256 = Ed25519PrivateKey.generate(), generate_private_key(SECP256R1())
REFUND = next(each for each in MINT.genuine if each.kind.action == "refund")


def forged(secret: bytes, kid: str) -> Any:
    """A permission that somebody without any key of ours has signed with what he knows."""
    claims = {**REFUND.claims, "amount": ACTIONS[REFUND.kind]["amount"]}
    token = tokens.compact({"alg": "HS256", "typ": "JWT", "kid": kid}, claims, tokens.hs256(secret))
    return replace(REFUND.authorization, token=token)


def cause(verifier: AuthorizationVerifier, authorization: Any) -> str:
    with pytest.raises(InvalidAuthorizationError) as refused:
        verifier.verify(authorization, REFUND.kind, ACTIONS[REFUND.kind])
    return str(refused.value.details["cause"])


def test_the_path_of_a_key_signs_nothing(tmp_path: Path) -> None:
    """Whoever has read the deployment's files knows it."""
    file = tmp_path / "the-public-key-of-the-queue.pub.pem"
    file.write_bytes(public_pem(ED25519))
    for text in (str(file), f" {file}\n", f"'{file}'", os.path.relpath(file), f"file://{file}"):
        for given in (text, text.encode()):
            with pytest.raises(InvalidRequestError, match="from_file"):
                AuthorizationVerifier([given])
    public = AuthorizationKey.of(ED25519.public_key())
    for verifier in (
        AuthorizationVerifier([AuthorizationKey.from_file(file)]),
        AuthorizationVerifier(KeyFile(file)),
        AuthorizationVerifier(KeyFile(str(file))),
    ):
        for known in (str(file), f"{file}\n", file.name, public.kid):
            authorization = forged(known.encode(), public.kid)
            assert cause(verifier, authorization) == "algorithm"
            of_the_path = AuthorizationKey.secret(known.encode().ljust(32)).kid
            assert cause(verifier, forged(known.encode(), of_the_path)) == "unknown_key"


@pytest.mark.parametrize("private", [ED25519, P256], ids=["EdDSA", "ES256"])
def test_nothing_of_a_published_document_signs_anything(private: Any, tmp_path: Path) -> None:
    entry = public_jwk(private, use="sig")
    document = json.dumps({"keys": [entry]})
    file = tmp_path / "queue.jwks"
    file.write_text(document)
    key = AuthorizationKey.from_jwk(entry)
    known = [document.encode(), json.dumps(entry).encode(), entry["x"].encode(), unpart(entry["x"]), key.kid.encode()]
    known += [public_pem(private), public_pem(private).strip(), b"", b"null"]
    for verifier in (
        AuthorizationVerifier(document),
        AuthorizationVerifier(KeyFile(file)),
        AuthorizationVerifier([key]),
    ):
        for secret in known:
            assert cause(verifier, forged(secret, key.kid)) == "algorithm"


def test_a_document_cannot_turn_a_pair_into_a_secret(tmp_path: Path) -> None:
    """Each entry keeps all of the public key and says that it were something else."""
    entry = public_jwk(ED25519, kid="queue")
    file = tmp_path / "queue.jwks"
    verifier = AuthorizationVerifier({"keys": [entry]})
    for confused in (
        {**entry, "alg": "HS256"},
        {**entry, "alg": "none"},
        {**entry, "kty": "oct"},
        {**entry, "kty": "oct", "k": entry["x"]},
        {**entry, "k": entry["x"]},
        secret_jwk(public_pem(ED25519), kid="queue"),
        secret_jwk(json.dumps(entry).encode(), kid="queue"),
    ):
        file.write_text(json.dumps({"keys": [confused]}))
        for keys in ({"keys": [confused]}, {"keys": [entry, confused]}, KeyFile(file)):
            with contextlib.suppress(InvalidRequestError):
                verifier.replace_keys(keys)  # else it was passed over, beside the genuine one
        for secret in (unpart(entry["x"]), public_pem(ED25519)):
            assert cause(verifier, forged(secret, "queue")) == "algorithm"


def test_a_key_that_cannot_be_told_from_a_path_is_a_secret_only_where_somebody_says_so() -> None:
    text = "/run/secrets/the-public-key-of-the-queue"
    with pytest.raises(InvalidRequestError):
        QueueAuthorizer(text)
    key = AuthorizationKey.secret(text, kid="mine")
    verifier = AuthorizationVerifier([key])
    assert verifier.verify(forged(text.encode(), "mine"), REFUND.kind, ACTIONS[REFUND.kind]) == REFUND.id


@pytest.mark.parametrize("wrong", NO_KEYS, ids=lambda key: type(key).__name__)
def test_whatever_is_no_key_is_refused_by_every_name_of_a_key(wrong: Any) -> None:
    makes: list[Callable[[Any], object]] = [
        AuthorizationKey.secret,
        AuthorizationKey.from_pem,
        AuthorizationKey.from_jwk,
        AuthorizationKey.from_file,
        lambda given: MINT.verifier.replace_keys([given]),
        lambda given: AuthorizationVerifier(KeyFile(given)),
        lambda given: AuthorizationVerifier({"keys": given}),
        lambda given: AuthorizationVerifier({"keys": [given]}),
        lambda given: AuthorizationVerifier({"keys": [{**public_jwk(ED25519), "x": given}]}),
        lambda given: AuthorizationKey.from_jwk({**public_jwk(ED25519), "kty": given}),
        lambda given: AuthorizationKey.from_jwk({**public_jwk(ED25519), "alg": given}),
    ]
    for make in makes:
        with pytest.raises(InvalidRequestError) as refused:
            make(wrong)
        assert refused.value.details["field"] in {"key", "keys"}
        assert refused.value.details["value"] is not wrong or wrong == ()
    assert MINT.verifier.verify(REFUND.authorization, REFUND.kind, ACTIONS[REFUND.kind]) == REFUND.id


@pytest.mark.parametrize("wrong", [*NOTHINGS, *BAD_TEXTS], ids=lambda wrong: type(wrong).__name__)
def test_whatever_stands_for_a_token_makes_no_envelope(wrong: Any) -> None:
    with pytest.raises(InvalidAuthorizationError) as refused:
        QueueAuthorization.from_token(wrong)
    assert refused.value.details["cause"] in {"missing", "malformed"}


def test_a_kid_that_no_key_can_have_is_not_repeated() -> None:
    for kid in ("a\nb", "\x1b[2J", "k" * 129, "\u202e", ""):
        with pytest.raises(InvalidAuthorizationError) as refused:
            MINT.verifier.verify(forged(b"x", kid), REFUND.kind, ACTIONS[REFUND.kind])
        assert refused.value.details == {"cause": "unknown_key"}


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

"""What the queue signs, which authorizations a verifier accepts, and why it refuses every other."""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from freezegun import freeze_time

from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, QueueAuthorizer
from points_platform.wallets import (
    QueueAuthorization,
    QueuePartialSettlementAuthorization,
    QueueRefundAuthorization,
    QueueSettlementAuthorization,
    TransactionReason,
)
from support.answers import told

Kind = type[QueueAuthorization]
Json = dict[str, Any]

SECRET = "the secret that the tests sign with, 2026"
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
EPOCH = int(NOW.timestamp())
ESCROW_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


class Missing:
    """Stands for a claim or a header that is left out."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()

COMMON: Json = {"queue_item_id": "queue-1", "escrow_id": ESCROW_ID, "user_id": "ana", "reason": "admin_refund"}
ACTIONS: dict[Kind, Json] = {
    QueueSettlementAuthorization: {**COMMON, "model_id": "luna", "amount": 30},
    QueueRefundAuthorization: {**COMMON, "amount": 30},
    QueuePartialSettlementAuthorization: {**COMMON, "model_id": "luna", "refund_amount": 10, "settle_amount": 20},
}
FIELDS = [(kind, name) for kind, action in ACTIONS.items() for name in action]
every_kind = pytest.mark.parametrize("kind", list(ACTIONS), ids=lambda kind: str(kind.action))


@pytest.fixture(scope="module", autouse=True)
def _noon() -> Iterator[None]:
    # For all tests here: each time that it is frozen every module is looked through. What pytest measures goes on.
    with freeze_time(NOW, ignore=["_pytest", "xdist"]):
        yield


@pytest.fixture(params=["new", "used"])
def authorizer(request: pytest.FixtureRequest) -> QueueAuthorizer:
    """What it has verified before, and may remember, must not let anything else pass. Without leeway: exact edges."""
    authorizer = QueueAuthorizer(SECRET, leeway=timedelta(0))
    for kind, action in ACTIONS.items() if request.param == "used" else ():
        authorizer.verify(authorize(authorizer, kind), kind, action)
    return authorizer


def authorize(authorizer: QueueAuthorizer, kind: Kind, **changes: Any) -> Any:
    method: dict[Kind, Callable[..., QueueAuthorization]] = {
        QueueSettlementAuthorization: authorizer.authorize_settlement,
        QueueRefundAuthorization: authorizer.authorize_refund,
        QueuePartialSettlementAuthorization: authorizer.authorize_partial_settlement,
    }
    return method[kind](**{**ACTIONS[kind], **changes})


def part(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def unpart(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def hs256(secret: str | bytes = SECRET) -> Callable[[bytes], bytes]:
    key = secret.encode() if isinstance(secret, str) else secret
    return lambda message: hmac.new(key, message, hashlib.sha256).digest()


def compact(header: Any, claims: Any, sign: Callable[[bytes], bytes]) -> str:
    """A token made by hand: what a library would refuse to sign can be signed all the same."""
    head, body = (part(value if isinstance(value, bytes) else json.dumps(value).encode()) for value in (header, claims))
    return f"{head}.{body}.{part(sign(f'{head}.{body}'.encode()))}"


def opened(token: str) -> tuple[Json, Json]:
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


def changed(given: Json, changes: Json) -> Json:
    return {name: value for name, value in (given | changes).items() if value is not MISSING}


def resigned(authorization: Any, claims: Json | None = None, header: Json | None = None) -> Any:
    """The authorization with a token whose claims and header are changed, signed again with the right secret."""
    head, body = opened(authorization.token)
    return replace(authorization, token=compact(changed(head, header or {}), changed(body, claims or {}), hs256()))


def verify(verifier: AuthorizationVerifier, authorization: Any, kind: Kind | None = None, **action: Any) -> str:
    kind = kind or type(authorization)
    return verifier.verify(authorization, kind, ACTIONS[kind] | action)


def refusal(verifier: AuthorizationVerifier, authorization: Any, kind: Kind | None = None, **action: Any) -> Json:
    with pytest.raises(InvalidAuthorizationError) as caught:
        verify(verifier, authorization, kind, **action)
    return caught.value.details


# ── what is signed ──


@every_kind
def test_a_token_holds_exactly_the_registered_claims_the_action_and_its_fields(
    authorizer: QueueAuthorizer, kind: Kind
) -> None:
    authorization = authorize(authorizer, kind)
    header, claims = opened(authorization.token)
    action = {name: value for name, value in ACTIONS[kind].items() if name != "queue_item_id"}
    assert header == {"alg": "HS256", "kid": AuthorizationKey.of(SECRET).kid, "typ": "JWT"}
    assert claims == {
        "iss": "performance-queue",
        "aud": "points-platform-wallets",
        "sub": "queue-1",
        "jti": verify(authorizer, authorization),
        "iat": EPOCH,
        "nbf": EPOCH,
        "exp": EPOCH + 300,
        "action": kind.action,
        **action,
    }


@every_kind
def test_the_envelope_repeats_what_is_in_the_token(authorizer: QueueAuthorizer, kind: Kind) -> None:
    authorization = authorize(authorizer, kind, expires_in=timedelta(hours=2, milliseconds=900))
    written = {field.name: getattr(authorization, field.name) for field in fields(authorization)}
    assert written == {
        **ACTIONS[kind],
        "token": authorization.token,
        "issued_at": NOW,
        "expires_at": NOW + timedelta(hours=2),
    }


def test_times_are_whole_seconds_also_between_two_seconds(authorizer: QueueAuthorizer) -> None:
    with freeze_time(NOW + timedelta(microseconds=999_999)):
        authorization = authorize(authorizer, QueueRefundAuthorization)
        assert verify(authorizer, authorization)
    assert (authorization.issued_at, authorization.expires_at) == (NOW, NOW + timedelta(minutes=5))


@every_kind
def test_every_authorization_has_an_id_of_its_own(authorizer: QueueAuthorizer, kind: Kind) -> None:
    ids = {verify(authorizer, authorize(authorizer, kind)) for _ in range(100)}
    assert len(ids) == 100


@every_kind
def test_an_authorization_is_frozen_and_keyword_only(authorizer: QueueAuthorizer, kind: Kind) -> None:
    authorization = authorize(authorizer, kind)
    with pytest.raises(FrozenInstanceError):
        authorization.token = "another"
    with pytest.raises(TypeError):
        type(authorization)(*(getattr(authorization, field.name) for field in fields(authorization)))


@every_kind
def test_an_authorization_shows_all_but_its_token(authorizer: QueueAuthorizer, kind: Kind) -> None:
    authorization = authorize(authorizer, kind)
    shown = (f"{f.name}={getattr(authorization, f.name)!r}" for f in fields(authorization) if f.name != "token")
    assert repr(authorization) == str(authorization) == f"{kind.__name__}({', '.join(shown)})"
    assert authorization.token not in repr(authorization)
    nothing = ", ".join(f"{f.name}=None" for f in fields(kind) if f.name != "token")
    assert repr(kind.__new__(kind)) == f"{kind.__name__}({nothing})", "also where a debugger sees it half built"


@every_kind
def test_a_token_can_be_verified_any_number_of_times(authorizer: QueueAuthorizer, kind: Kind) -> None:
    authorization = authorize(authorizer, kind)
    assert verify(authorizer, authorization) == verify(AuthorizationVerifier(SECRET), authorization)


def test_the_longest_identifiers_make_a_token_that_verifies() -> None:
    longest = "\U0001f600" * 128
    key = AuthorizationKey.of(SECRET, kid=longest)
    authorizer = QueueAuthorizer(key, issuer=longest, audience=longest)
    action: Json = {"queue_item_id": longest, "user_id": longest, "model_id": longest, "reason": "r" * 64}
    authorization = authorize(authorizer, QueueSettlementAuthorization, **action)
    assert verify(authorizer, authorization, **action)


BAD_VALUES: dict[str, tuple[Any, ...]] = {
    "identifier": (None, "", "i" * 129, "a\nb", "a\0", "\ud800", 1, True, b"queue-1", ["queue-1"]),
    "reason": (None, "", "Admin_Refund", "1st", "a" * 65, "a b", "a\n", 1, True),
    "points": (None, 0, -1, 2**53, True, 1.0, "1", float("nan"), 10**400),
}


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: value if isinstance(value, str) else value.action)
def test_each_field_is_checked_before_it_is_signed(authorizer: QueueAuthorizer, kind: Kind, field: str) -> None:
    form = "points" if field.endswith("amount") else "reason" if field == "reason" else "identifier"
    for value in BAD_VALUES[form]:
        with pytest.raises(InvalidRequestError) as caught:
            authorize(authorizer, kind, **{field: value})
        assert caught.value.details["field"] == field
        assert caught.value.details["value"] == told(value)


@every_kind
def test_what_is_signed_is_the_plain_value_of_a_subclass(authorizer: QueueAuthorizer, kind: Kind) -> None:
    authorization = authorize(authorizer, kind, reason=TransactionReason.ADMIN_REFUND)
    assert type(authorization.reason) is str
    assert verify(authorizer, authorization)
    assert verify(authorizer, replace(authorization, reason=TransactionReason.ADMIN_REFUND)), "nor does an envelope"


@pytest.mark.parametrize(
    "expires_in",
    [None, 300, 1.0, "5m", timedelta(0), -SECOND, timedelta(milliseconds=999), timedelta(days=365, microseconds=1)],
)
@every_kind
def test_a_lifetime_out_of_bounds_is_refused(authorizer: QueueAuthorizer, kind: Kind, expires_in: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        authorize(authorizer, kind, expires_in=expires_in)
    assert caught.value.details["field"] == "expires_in"


@pytest.mark.parametrize("expires_in", [SECOND, timedelta(days=365)])
@every_kind
def test_the_bounds_of_a_lifetime_are_inside(authorizer: QueueAuthorizer, kind: Kind, expires_in: timedelta) -> None:
    authorization = authorize(authorizer, kind, expires_in=expires_in)
    assert authorization.expires_at == NOW + expires_in
    assert verify(authorizer, authorization)


@pytest.mark.parametrize("name", ["issuer", "audience"])
def test_issuer_and_audience_are_identifiers(name: str) -> None:
    for value in BAD_VALUES["identifier"]:
        with pytest.raises(InvalidRequestError) as caught:
            QueueAuthorizer(SECRET, **{name: value})
        assert caught.value.details["field"] == name


# ── every claim ──

NOT_STRINGS = (True, False, 0, 1.0, ["queue-1"], {"queue-1": 1})
HUGE = 10**400
# For each claim: the values given for it, and why the token is refused; ``...`` where the claim is not named.
ALWAYS_MISSING = ((MISSING, None), "claim_missing", None)
Rows = list[tuple[tuple[Any, ...], str, Any]]
REGISTERED_CLAIMS: dict[str, Rows] = {
    "iss": [(("someone-else", "", "Performance-Queue", *NOT_STRINGS), "issuer", ...)],
    "aud": [
        (("someone-else", True, 1, ["points-platform-wallets"], {"points-platform-wallets": 1}), "audience", ...),
        (("", [], {}, 0, False), "claim_missing", "aud"),
    ],
    "jti": [
        (("", "i" * 129, "a\nb", "a\0", "\ud800"), "malformed", "jti"),
        (NOT_STRINGS, "malformed", ...),
    ],
    "iat": [
        ((EPOCH + 1, EPOCH + 1.5, HUGE, 10**12, str(EPOCH + 1)), "not_yet_valid", ...),
        ((float(EPOCH), EPOCH + 0.5, EPOCH - 0.5, str(EPOCH), True, False, -1, -HUGE), "malformed", "iat"),
        (("noon", "", [EPOCH], {}, float("inf"), float("nan")), "malformed", ...),
    ],
    "nbf": [
        ((EPOCH + 1, HUGE, str(EPOCH + 1)), "not_yet_valid", ...),
        ((float(EPOCH), str(EPOCH), True, False, -1, -HUGE, EPOCH - 0.5), "malformed", "nbf"),
        (("noon", "", [EPOCH], {}, float("inf"), float("nan")), "malformed", ...),
    ],
    "exp": [
        ((EPOCH, EPOCH - 1, 0, -1, -HUGE, True, False, 1.0, "1", float(EPOCH)), "expired", ...),
        ((EPOCH + 300.0, EPOCH + 300.5, str(EPOCH + 300), HUGE, 2**53, 2**63, 253_402_300_800), "malformed", "exp"),
        (("noon", "", [EPOCH + 300], {}, float("inf"), float("nan")), "malformed", ...),
    ],
    "sub": [
        (("queue-2", "", "Queue-1", "queue-1 ", "queue-1\0", "ana"), "claim_mismatch", "sub"),
        (NOT_STRINGS, "malformed", ...),
    ],
}


def floats(value: int) -> tuple[float, ...]:
    return float(value), value + 0.5, float("nan"), float("inf")


ACTION_CLAIMS: dict[str, Rows] = {
    "action": [(("hold", "", "SETTLE", *NOT_STRINGS), "claim_mismatch", "action")],
    **{
        name: [(("other", "", f"{value} ", f"{value}\0", value.upper(), *NOT_STRINGS), "claim_mismatch", name)]
        for name, value in {**ACTIONS[QueueSettlementAuthorization], "escrow_id": ESCROW_ID}.items()
        if isinstance(value, str) and name != "queue_item_id"
    },
    **{
        name: [
            (
                (value + 1, value - 1, -value, 0, True, str(value), [value], HUGE, 2**53, *floats(value)),
                "claim_mismatch",
                name,
            )
        ]
        for name, value in {"amount": 30, "refund_amount": 10, "settle_amount": 20}.items()
    },
}
CLAIMS = {
    claim: [((MISSING, None), "claim_missing", claim), *rows]
    for claim, rows in (REGISTERED_CLAIMS | ACTION_CLAIMS).items()
}


def claims_of(kind: Kind) -> list[str]:
    action = [name for name in ACTIONS[kind] if name != "queue_item_id"]
    return [*REGISTERED_CLAIMS, "action", *action]


@pytest.mark.parametrize(
    ("kind", "claim"),
    [(kind, claim) for kind in ACTIONS for claim in claims_of(kind)],
    ids=lambda value: value if isinstance(value, str) else value.action,
)
def test_a_signed_token_with_one_claim_missing_changed_or_of_another_type_is_refused(
    authorizer: QueueAuthorizer, kind: Kind, claim: str
) -> None:
    genuine = authorize(authorizer, kind)
    assert verify(authorizer, resigned(genuine)), "the token is signed right, so only the claim is to blame"
    for values, cause, named in CLAIMS[claim]:
        for value in values:
            details = refusal(authorizer, resigned(genuine, {claim: value}))
            expected = {"cause": cause} if named is ... else {"cause": cause, "claim": named}
            shown = {name: details.get(name) for name in expected}
            assert shown == expected, f"{claim} = {value!r}"


@pytest.mark.parametrize("forged", [True, 1.0, "1", [1], 2, 0])
@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, field in FIELDS if field.endswith("amount")],
    ids=lambda value: value if isinstance(value, str) else value.action,
)
def test_what_equals_one_in_python_is_not_the_amount_one(
    authorizer: QueueAuthorizer, kind: Kind, field: str, forged: Any
) -> None:
    one: Json = {field: 1}
    authorization = authorize(authorizer, kind, **one)
    assert verify(authorizer, authorization, **one)
    details = refusal(authorizer, resigned(authorization, {field: forged}), **one)
    assert details == {"cause": "claim_mismatch", "claim": field}


@every_kind
def test_the_token_of_one_action_is_none_for_another(authorizer: QueueAuthorizer, kind: Kind) -> None:
    for other in ACTIONS.keys() - {kind}:
        token = authorize(authorizer, other).token
        swapped = replace(authorize(authorizer, kind), token=token)
        assert refusal(authorizer, swapped)["cause"] in {"claim_missing", "claim_mismatch"}
        every_claim = {**ACTIONS[kind], "action": other.action}
        del every_claim["queue_item_id"]
        details = refusal(authorizer, resigned(swapped, every_claim))
        assert details == {"cause": "claim_mismatch", "claim": "action"}


@pytest.mark.parametrize("payload", [b"[]", b'"text"', b"null", b"7", b"", b"{", b"\xff", b"[" * 5000, b"{}"])
def test_a_signed_payload_that_is_no_object_of_claims_is_refused(authorizer: QueueAuthorizer, payload: bytes) -> None:
    genuine = authorize(authorizer, QueueRefundAuthorization)
    header, _ = opened(genuine.token)
    cause = refusal(authorizer, replace(genuine, token=compact(header, payload, hs256())))["cause"]
    assert cause == ("claim_missing" if payload == b"{}" else "malformed")


# ── time ──


@every_kind
def test_a_token_is_valid_until_the_exact_instant_of_its_expiry(authorizer: QueueAuthorizer, kind: Kind) -> None:
    authorization = authorize(authorizer, kind, expires_in=timedelta(minutes=1))
    for instant in (NOW, NOW + timedelta(seconds=59), NOW + timedelta(seconds=59, microseconds=999_999)):
        with freeze_time(instant):
            assert verify(authorizer, authorization)
    for instant in (NOW + timedelta(minutes=1), NOW + timedelta(minutes=1, microseconds=1), NOW + timedelta(days=9)):
        with freeze_time(instant):
            assert refusal(authorizer, authorization) == {"cause": "expired"}


@every_kind
def test_a_token_is_valid_from_the_exact_instant_of_its_issue(authorizer: QueueAuthorizer, kind: Kind) -> None:
    authorization = authorize(authorizer, kind)
    with freeze_time(NOW - timedelta(microseconds=1)):
        assert refusal(authorizer, authorization) == {"cause": "not_yet_valid"}
    with freeze_time(NOW):
        assert verify(authorizer, authorization)


@every_kind
def test_a_token_may_be_valid_from_the_first_second_of_1970_to_the_last_day_of_9999(
    authorizer: QueueAuthorizer, kind: Kind
) -> None:
    first, last = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
    token = resigned(authorize(authorizer, kind), {"iat": 0, "nbf": 0, "exp": int(last.timestamp())}).token
    envelope = replace(authorize(authorizer, kind), token=token, issued_at=first, expires_at=last)
    assert verify(authorizer, envelope)


@every_kind
@pytest.mark.parametrize(
    "patient",
    [
        AuthorizationVerifier([SECRET]),
        QueueAuthorizer(SECRET),
        AuthorizationVerifier([SECRET], leeway=timedelta(seconds=5)),
    ],
    ids=["by default", "by default, of the queue", "when asked for"],
)
def test_leeway_shifts_both_ends_by_as_much_and_is_five_seconds_unless_told_otherwise(
    authorizer: QueueAuthorizer, kind: Kind, patient: AuthorizationVerifier
) -> None:
    authorization = authorize(authorizer, kind, expires_in=timedelta(minutes=1))
    valid = [NOW - 5 * SECOND, NOW + timedelta(seconds=64, microseconds=999_999)]
    for instant in valid:
        with freeze_time(instant):
            assert verify(patient, authorization)
            assert refusal(authorizer, authorization)["cause"] in {"expired", "not_yet_valid"}
    with freeze_time(NOW - timedelta(seconds=5, microseconds=1)):
        assert refusal(patient, authorization) == {"cause": "not_yet_valid"}
    with freeze_time(NOW + timedelta(seconds=65)):
        assert refusal(patient, authorization) == {"cause": "expired"}


@pytest.mark.parametrize("leeway", [-SECOND, timedelta(microseconds=-1), 5, 0, None, True, "5"])
def test_a_leeway_that_is_no_timedelta_from_zero_is_refused(leeway: Any) -> None:
    for make in (QueueAuthorizer, AuthorizationVerifier):
        with pytest.raises(InvalidRequestError) as caught:
            make(SECRET, leeway=leeway)
        assert caught.value.details["field"] == "leeway"


# ── key and algorithm ──

ED25519 = Ed25519PrivateKey.generate()
P256 = generate_private_key(SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PAIRS = pytest.mark.parametrize("private", [ED25519, P256], ids=["EdDSA", "ES256"])


@PAIRS
@every_kind
def test_a_public_key_verifies_what_the_private_one_signed(private: Any, kind: Kind) -> None:
    authorization = authorize(QueueAuthorizer(private), kind)
    assert verify(AuthorizationVerifier([private.public_key()]), authorization)


@PAIRS
@every_kind
def test_a_public_key_is_no_hmac_secret(private: Any, kind: Kind) -> None:
    """The classic confusion: what everybody may know, used as the secret of a symmetric algorithm."""
    public = private.public_key()
    verifier = AuthorizationVerifier([public])
    genuine = authorize(QueueAuthorizer(private), kind)
    header, claims = opened(genuine.token)
    known = [public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)]
    known += [known[0].strip(), public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)]
    raw = (Encoding.Raw, PublicFormat.Raw) if private is ED25519 else (Encoding.X962, PublicFormat.UncompressedPoint)
    for secret in [*known, public.public_bytes(*raw), header["kid"].encode(), b""]:
        for algorithm in ("HS256", "HS384", "HS512", "hs256"):
            digest = hashlib.new(f"sha{algorithm[2:]}")
            token = compact(
                {**header, "alg": algorithm},
                claims,
                lambda message, key=secret, name=digest.name: hmac.new(key, message, name).digest(),  # type: ignore[misc]
            )
            assert refusal(verifier, replace(genuine, token=token)) == {"cause": "algorithm"}
        honest = compact(header, claims, hs256(secret))
        assert refusal(verifier, replace(genuine, token=honest)) == {"cause": "signature"}


@pytest.mark.parametrize(
    "algorithm",
    [
        *("none", "None", "NONE", "", "HS384", "HS512", "RS256", "PS256", "ES256", "EdDSA", "hs256", "HS256 ", "X"),
        *(None, True, 256, ["HS256"], {"HS256": 1}, MISSING),
    ],
    ids=str,
)
@every_kind
def test_the_header_does_not_choose_the_algorithm(authorizer: QueueAuthorizer, kind: Kind, algorithm: Any) -> None:
    genuine = authorize(authorizer, kind)
    assert refusal(authorizer, resigned(genuine, header={"alg": algorithm})) == {"cause": "algorithm"}


@every_kind
def test_an_unsigned_token_is_refused(authorizer: QueueAuthorizer, kind: Kind) -> None:
    genuine = authorize(authorizer, kind)
    header, claims = opened(genuine.token)
    for algorithm in ("none", "HS256"):
        unsigned = compact({**header, "alg": algorithm}, claims, lambda message: b"")
        assert refusal(authorizer, replace(genuine, token=unsigned)) == {"cause": "malformed"}
        assert refusal(authorizer, replace(genuine, token=unsigned.rstrip("."))) == {"cause": "malformed"}


def test_a_token_of_rsa_is_refused_whatever_its_header_says(authorizer: QueueAuthorizer) -> None:
    genuine = authorize(authorizer, QueueSettlementAuthorization)
    header, claims = opened(genuine.token)
    token = jwt.encode(claims, RSA, algorithm="RS256", headers={"kid": header["kid"]})
    assert refusal(authorizer, replace(genuine, token=token)) == {"cause": "algorithm"}
    renamed = compact(header, claims, lambda message: RSA.sign(message, PKCS1v15(), SHA256()))
    assert refusal(authorizer, replace(genuine, token=renamed)) == {"cause": "signature"}


@every_kind
def test_another_keys_id_does_not_make_a_token_its_own(kind: Kind) -> None:
    keys = {"hmac": AuthorizationKey.of(SECRET), "ed": AuthorizationKey.of(ED25519), "ec": AuthorizationKey.of(P256)}
    verifier = AuthorizationVerifier(keys.values())
    sign: dict[str, Callable[[bytes], bytes]] = {
        "hmac": hs256(),
        "ed": ED25519.sign,
        "ec": lambda message: jwt.get_algorithm_by_name("ES256").sign(message, P256),
    }
    for signer, key in keys.items():
        genuine = authorize(QueueAuthorizer(key), kind)
        assert verify(verifier, genuine)
        header, claims = opened(genuine.token)
        for other in keys.keys() - {signer}:
            stolen = {**header, "kid": keys[other].kid}
            assert refusal(verifier, replace(genuine, token=compact(stolen, claims, sign[signer]))) == {
                "cause": "algorithm"
            }
            stolen["alg"] = keys[other].algorithm
            details = refusal(verifier, replace(genuine, token=compact(stolen, claims, sign[signer])))
            assert details == {"cause": "signature"}


@pytest.mark.parametrize(
    ("kid", "cause"),
    [("unknown", "unknown_key"), ("", "unknown_key"), (MISSING, "unknown_key"), ("\ud800", "unknown_key")]
    + [(kid, "malformed") for kid in (None, 1, True, 1.5, ["kid"], {"kid": 1})],
    ids=repr,
)
@every_kind
def test_a_token_names_a_key_that_the_verifier_has(
    authorizer: QueueAuthorizer, kind: Kind, kid: Any, cause: str
) -> None:
    named = {"kid": kid} if kid == "unknown" else {}
    assert refusal(authorizer, resigned(authorize(authorizer, kind), header={"kid": kid})) == {"cause": cause, **named}


@every_kind
def test_another_secret_of_the_same_id_is_another_key(kind: Kind) -> None:
    stranger = QueueAuthorizer(AuthorizationKey.of(SECRET + "!", kid="queue"))
    verifier = AuthorizationVerifier([AuthorizationKey.of(SECRET, kid="queue")])
    assert refusal(verifier, authorize(stranger, kind)) == {"cause": "signature"}


@pytest.mark.parametrize(
    "header",
    [{"crit": value} for value in ([], ["exp"], ["b64"], ["kid"], "b64", None, [1], {"b64": True})]
    + [{"b64": False}, {"b64": False, "crit": ["b64"]}, {"crit": ["x"], "x": 1}],
    ids=repr,
)
@every_kind
def test_extensions_of_the_header_are_refused(authorizer: QueueAuthorizer, kind: Kind, header: Json) -> None:
    assert refusal(authorizer, resigned(authorize(authorizer, kind), header=header)) == {"cause": "malformed"}


def test_a_key_that_the_token_brings_along_is_not_used(authorizer: QueueAuthorizer) -> None:
    genuine = authorize(authorizer, QueueRefundAuthorization)
    header, claims = opened(genuine.token)
    own = jwt.get_algorithm_by_name("EdDSA").to_jwk(ED25519.public_key(), as_dict=True)
    for brought in ({"jwk": own}, {"jku": "https://example.com/keys"}, {"x5c": ["MIIB"]}, {"x5u": "file:///key"}):
        for algorithm, cause in (("EdDSA", "algorithm"), ("HS256", "signature")):
            token = compact({**header, **brought, "alg": algorithm}, claims, ED25519.sign)
            assert refusal(authorizer, replace(genuine, token=token)) == {"cause": cause}


@pytest.mark.parametrize("header", [b"", b"[]", b"null", b'"kid"', b"{", b"\xff\xfe", b"[" * 5000, b'{"kid":' * 900])
def test_a_header_that_is_no_object_is_refused(authorizer: QueueAuthorizer, header: bytes) -> None:
    genuine = authorize(authorizer, QueueRefundAuthorization)
    token = compact(header, opened(genuine.token)[1], hs256())
    assert refusal(authorizer, replace(genuine, token=token)) == {"cause": "malformed"}


@pytest.mark.parametrize("key", [SECRET, ED25519, P256], ids=["HS256", "EdDSA", "ES256"])
def test_a_signature_with_any_bit_flipped_is_refused(key: Any) -> None:
    authorizer = QueueAuthorizer(key)
    genuine = authorize(authorizer, QueueSettlementAuthorization)
    start, _, signature = genuine.token.rpartition(".")
    raw = unpart(signature)
    for bit in [*range(0, len(raw) * 8, 5), len(raw) * 8 - 1]:
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refusal(authorizer, replace(genuine, token=f"{start}.{part(bytes(flipped))}")) == {"cause": "signature"}
    for other in (raw[:-1], raw + b"\0", raw[1:], raw * 2, bytes(len(raw))):
        assert refusal(authorizer, replace(genuine, token=f"{start}.{part(other)}")) == {"cause": "signature"}


def test_a_token_with_any_character_changed_is_refused(authorizer: QueueAuthorizer) -> None:
    genuine = authorize(authorizer, QueueSettlementAuthorization)
    for place in range(0, len(genuine.token), 3):
        for character in {"A", "-", "_", "9"} - {genuine.token[place]}:
            token = genuine.token[:place] + character + genuine.token[place + 1 :]
            assert refusal(authorizer, replace(genuine, token=token))["cause"]


# ── the form of the token ──


def deformed(token: str) -> dict[str, Any]:
    """What is no compact token, made of one that is."""
    header, body, signature = token.split(".")
    return {
        "padding": token + "=",
        "two paddings": token + "==",
        "padded header": f"{header}=.{body}.{signature}",
        "padded payload": f"{header}.{body}==.{signature}",
        "newline at the end": token + "\n",
        "carriage return at the end": token + "\r\n",
        "newline inside": f"{header}.{body[:9]}\n{body[9:]}.{signature}",
        "space before": " " + token,
        "space after": token + " ",
        "tab inside": f"{header}.\t{body}.{signature}",
        "NUL after": token + "\0",
        "four segments": f"{token}.{signature}",
        "five segments": f"{token}..",
        "leading dot": f".{token}",
        "trailing dot": f"{token}.",
        "two segments": f"{header}.{body}",
        "one segment": header,
        "no header": f".{body}.{signature}",
        "no payload": f"{header}..{signature}",
        "no signature": f"{header}.{body}.",
        "only dots": "..",
        "prefixed": f"Bearer {token}",
        "quoted": f'"{token}"',
        "plain base64": token.replace("_", "/").replace("-", "+") + "/",
        "a letter that is not ASCII": token[:-1] + "é",
        "a digit that is not ASCII": token[:-1] + "\u0661",
        "a lone surrogate": token[:-1] + "\ud800",
        "full-width": token[:-1] + "\uff21",
        "very long": token + "A" * 100_000,
        "very many segments": "a." * 100_000,
        "bytes": token.encode(),
        "bytearray": bytearray(token.encode()),
        "a list": [token],
        "a number": 42,
        "a bool": True,
        "a float": 1.5,
        "an object": object(),
        "json": json.dumps({"payload": body, "protected": header, "signature": signature}),
    }


@every_kind
def test_only_the_compact_form_is_a_token(authorizer: QueueAuthorizer, kind: Kind) -> None:
    genuine = authorize(authorizer, kind)
    for name, token in deformed(genuine.token).items():
        assert refusal(authorizer, replace(genuine, token=token)) == {"cause": "malformed"}, name


def test_a_token_of_16_kib_is_read_and_a_longer_one_is_not(authorizer: QueueAuthorizer) -> None:
    genuine = authorize(authorizer, QueueRefundAuthorization)
    for header, claims in ((a, 11_500 + b) for a in range(4) for b in range(500)):
        padded = resigned(genuine, {"padding": "x" * claims}, {"typ": "J" * header})
        if len(padded.token) == 16 * 1024:
            break
    assert verify(authorizer, padded)
    longer = resigned(genuine, {"padding": "x" * (claims + 1)}, {"typ": "J" * header})
    assert refusal(authorizer, longer) == {"cause": "malformed"}


@every_kind
def test_unused_bits_of_a_segment_are_zero(authorizer: QueueAuthorizer, kind: Kind) -> None:
    """One token has one text: the last character of 32 bytes carries two bits that mean nothing."""
    genuine = authorize(authorizer, kind)
    last = genuine.token[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same = alphabet[alphabet.index(last) | 1]
    assert unpart(genuine.token.rpartition(".")[2]) == unpart((genuine.token[:-1] + same).rpartition(".")[2])
    assert refusal(authorizer, replace(genuine, token=genuine.token[:-1] + same)) == {"cause": "malformed"}


@every_kind
def test_no_authorization_and_no_token_are_missing(authorizer: QueueAuthorizer, kind: Kind) -> None:
    genuine = authorize(authorizer, kind)
    for absent in (None, replace(genuine, token=None), replace(genuine, token="")):
        assert refusal(authorizer, absent, kind) == {"cause": "missing"}


# ── the envelope and its kind ──


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: value if isinstance(value, str) else value.action)
def test_an_envelope_that_disagrees_with_its_token_is_refused(
    authorizer: QueueAuthorizer, kind: Kind, field: str
) -> None:
    genuine = authorize(authorizer, kind)
    value = ACTIONS[kind][field]
    others: tuple[Any, ...] = ("other", f"{value} ", value.encode(), [value]) if isinstance(value, str) else ()
    if isinstance(value, int):
        others = (value + 1, value - 1, float(value), str(value), True)
    claim = "sub" if field == "queue_item_id" else field
    for other in (*others, None, object()):
        details = refusal(authorizer, replace(genuine, **{field: other}))
        assert details == {"cause": "envelope_mismatch", "claim": claim}


@pytest.mark.parametrize(("field", "claim"), [("issued_at", "iat"), ("expires_at", "exp")])
@every_kind
def test_times_on_the_envelope_are_those_of_the_token(
    authorizer: QueueAuthorizer, kind: Kind, field: str, claim: str
) -> None:
    genuine = authorize(authorizer, kind)
    time: datetime = getattr(genuine, field)
    others = (time + SECOND, time - SECOND, time + timedelta(microseconds=1), time.replace(tzinfo=None), None)
    for other in (*others, time.timestamp(), time.isoformat(), time.date(), datetime.max.replace(tzinfo=UTC)):
        details = refusal(authorizer, replace(genuine, **{field: other}))
        assert details == {"cause": "envelope_mismatch", "claim": claim}
    elsewhere = time.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert verify(authorizer, replace(genuine, **{field: elsewhere})), "the same instant, written in another zone"


def test_what_counts_is_the_token_not_an_envelope_that_suits_the_request(authorizer: QueueAuthorizer) -> None:
    genuine = authorize(authorizer, QueueSettlementAuthorization)
    wanted: Json = {"amount": 1000, "model_id": "mallory", "user_id": "eve", "reason": "bonus"}
    for field, value in wanted.items():
        details = refusal(authorizer, replace(genuine, **{field: value}), None, **{field: value})
        assert details == {"cause": "claim_mismatch", "claim": field}


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: value if isinstance(value, str) else value.action)
def test_a_genuine_authorization_is_none_for_another_request(
    authorizer: QueueAuthorizer, kind: Kind, field: str
) -> None:
    value = ACTIONS[kind][field]
    other: Json = {field: value + 1 if isinstance(value, int) else f"{value}x"}
    claim = "sub" if field == "queue_item_id" else field
    details = refusal(authorizer, authorize(authorizer, kind), **other)
    assert details == {"cause": "claim_mismatch", "claim": claim}


@dataclass(frozen=True, kw_only=True, repr=False)
class SpecialSettlement(QueueSettlementAuthorization):
    """A subclass could answer for the fields what it likes."""


@dataclass
class LooksLikeASettlement:
    """Has every attribute of an authorization, and is none."""

    genuine: QueueSettlementAuthorization

    def __getattr__(self, name: str) -> Any:
        return getattr(self.genuine, name)


def test_only_an_authorization_of_exactly_the_right_kind_counts(authorizer: QueueAuthorizer) -> None:
    kind = QueueSettlementAuthorization
    genuine = authorize(authorizer, kind)
    envelope = {field.name: getattr(genuine, field.name) for field in fields(genuine)}
    others = [SpecialSettlement(**envelope), LooksLikeASettlement(genuine), genuine.token, envelope, kind, 42, object()]
    others += [authorize(authorizer, other) for other in ACTIONS if other is not kind]
    for other in others:
        assert refusal(authorizer, other, kind) == {"cause": "claim_mismatch", "claim": "action"}


# ── which refusal wins ──


def test_the_first_reason_to_refuse_is_the_one_that_is_named(authorizer: QueueAuthorizer) -> None:
    """Each step mends the first fault of a token that has all of them."""
    genuine = authorize(authorizer, QueueSettlementAuthorization)
    header, claims = opened(genuine.token)
    faults: Json = {
        "iat": EPOCH + 9,
        "nbf": EPOCH + 9,
        "exp": EPOCH - 1,
        "iss": "x",
        "aud": "x",
        "jti": "",
        "amount": 31,
        "user_id": MISSING,
    }
    head = {**header, "kid": "x", "alg": "HS384"}
    sign = hs256("a secret of somebody else, 32 bytes and more")
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("unknown_key", lambda: head.update(kid=header["kid"])),
        ("algorithm", lambda: head.update(alg="HS256")),
        ("signature", lambda: None),
        ("claim_missing", lambda: faults.pop("user_id")),
        ("not_yet_valid", lambda: faults.update(iat=EPOCH, nbf=EPOCH)),
        ("expired", lambda: faults.update(exp=EPOCH + 9)),
        ("issuer", lambda: faults.pop("iss")),
        ("audience", lambda: faults.pop("aud")),
        ("malformed", lambda: faults.pop("jti")),
        ("claim_mismatch", lambda: faults.pop("amount")),
        ("envelope_mismatch", lambda: faults.pop("exp")),
    ]
    for cause, mend in steps:
        token = compact(head, changed(claims, faults), sign)
        assert refusal(authorizer, replace(genuine, token=token))["cause"] == cause
        mend()
        if cause == "signature":
            sign = hs256()
    assert verify(authorizer, replace(genuine, token=compact(head, changed(claims, faults), sign)))


@pytest.mark.parametrize(("name", "cause"), [("issuer", "issuer"), ("audience", "audience")])
@every_kind
def test_issuer_and_audience_are_those_of_the_verifier(kind: Kind, name: str, cause: str) -> None:
    ours, theirs = QueueAuthorizer(SECRET, **{name: "staging"}), QueueAuthorizer(SECRET)  # type: ignore[arg-type]
    assert verify(ours, authorize(ours, kind))
    assert refusal(ours, authorize(theirs, kind)) == {"cause": cause}
    assert refusal(theirs, authorize(ours, kind)) == {"cause": cause}


# ── what a verifier remembers ──


def test_more_headers_than_are_remembered_are_verified_all_the_same_and_none_lets_another_key_in(
    authorizer: QueueAuthorizer,
) -> None:
    genuine = authorize(authorizer, QueueRefundAuthorization)
    for number in range(300):
        other = resigned(genuine, header={"typ": f"JWT-{number}"})
        assert verify(authorizer, other) == verify(authorizer, genuine)
        header, body, _ = other.token.split(".")
        forged = f"{header}.{body}.{part(hs256('another secret of at least 32 bytes')(f'{header}.{body}'.encode()))}"
        assert refusal(authorizer, replace(other, token=forged)) == {"cause": "signature"}


def test_a_hundred_headers_that_signatures_have_proved_are_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, parsed = jwt.get_unverified_header, []

    def noted(token: str) -> Json:
        parsed.append(token)
        return parse(token)

    genuine = authorize(QueueAuthorizer(SECRET), QueueRefundAuthorization)
    sent = [resigned(genuine, header={"typ": f"JWT-{number}"}) for number in range(101)]
    another = [resigned(each, {"iat": EPOCH - 1, "nbf": EPOCH - 1}) for each in sent]
    another = [replace(each, issued_at=NOW - SECOND) for each in another]
    monkeypatch.setattr(jwt, "get_unverified_header", noted)
    verifier = AuthorizationVerifier(SECRET)
    for authorization in (*sent, *another):
        assert verify(verifier, authorization)
    assert parsed == [each.token for each in (*sent, another[-1])]


def test_a_header_is_not_remembered_before_a_signature_has_proved_it(authorizer: QueueAuthorizer) -> None:
    """Else whoever sends many tokens could fill the memory, or leave a key for the next one."""
    genuine = authorize(authorizer, QueueRefundAuthorization)
    for number in range(300):
        head, body = opened(genuine.token)
        token = compact(head | {"typ": f"other-{number}"}, body, hs256("another secret of at least 32 bytes"))
        assert refusal(authorizer, replace(genuine, token=token)) == {"cause": "signature"}
        assert verify(authorizer, resigned(genuine, header={"typ": f"other-{number}"}))
    new = QueueAuthorizer("quite another secret of at least 32 bytes")
    unknown = {"cause": "unknown_key", "kid": AuthorizationKey.of(SECRET).kid}
    assert refusal(new, genuine) == unknown
    assert refusal(new, genuine) == unknown

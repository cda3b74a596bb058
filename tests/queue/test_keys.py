"""Which keys sign and verify, how they are told apart, and how one follows another."""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any, cast

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, QueueAuthorizer
from points_platform.wallets import QueueRefundAuthorization

ACTION: dict[str, Any] = {
    "queue_item_id": "queue-1",
    "escrow_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "user_id": "ana",
    "reason": "queue_timeout",
    "amount": 30,
}
SECRET = "the secret that the tests sign with, 2026"
NEW_SECRET = "the secret that comes after it, from 2027"
ED25519 = Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())


def private_pem(key: Any, layout: PrivateFormat = PrivateFormat.PKCS8, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    pem: bytes = key.private_bytes(Encoding.PEM, layout, encryption)
    return pem


def public_bytes(key: Any, encoding: Encoding = Encoding.PEM, layout: Any = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    data: bytes = key.public_key().public_bytes(encoding, layout)
    return data


def works(authorizer: QueueAuthorizer, verifier: AuthorizationVerifier) -> bool:
    authorization = authorizer.authorize_refund(**ACTION)
    try:
        return bool(verifier.verify(authorization, QueueRefundAuthorization, ACTION))
    except InvalidAuthorizationError:
        return False


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


# ── what is a key ──


@pytest.mark.parametrize("secret", ["s" * 32, b"s" * 32, "é" * 16, b"\0" * 32, bytes(range(200, 256)), "x" * 5000])
def test_a_secret_of_32_bytes_and_more_signs_with_hs256(secret: str | bytes) -> None:
    assert AuthorizationKey.of(secret).algorithm == "HS256"
    assert works(QueueAuthorizer(secret), AuthorizationVerifier([secret]))


def test_a_text_and_its_bytes_are_the_same_secret() -> None:
    assert works(QueueAuthorizer(SECRET), AuthorizationVerifier([SECRET.encode()]))
    assert AuthorizationKey.of(SECRET) == AuthorizationKey.of(SECRET.encode())


@pytest.mark.parametrize("secret", ["s" * 31, b"s" * 31, "é" * 15, "", b"", " ", "secret"])
def test_a_secret_of_fewer_than_32_bytes_is_refused(secret: str | bytes) -> None:
    for make in (QueueAuthorizer, AuthorizationKey.of, lambda key: AuthorizationVerifier([key])):
        with pytest.raises(InvalidRequestError, match="at least 32 bytes") as caught:
            make(secret)
        assert caught.value.details["field"] == "key"


PAIRS = pytest.mark.parametrize(
    ("private", "algorithm"), [(ED25519, "EdDSA"), (P256, "ES256")], ids=["Ed25519", "P-256"]
)


@PAIRS
def test_a_key_pair_is_read_from_pem_text_pem_bytes_and_objects(private: Any, algorithm: str) -> None:
    pem, public = private_pem(private), public_bytes(private)
    for signing in (private, pem, pem.decode(), b"\r\n  " + pem.replace(b"\n", b"\r\n")):
        for verifying in (private.public_key(), public, public.decode(), b"\n" + public.strip()):
            assert AuthorizationKey.of(signing).algorithm == AuthorizationKey.of(verifying).algorithm == algorithm
            assert works(QueueAuthorizer(signing), AuthorizationVerifier([verifying]))


def test_a_private_key_in_the_older_form_of_openssl_is_read_too() -> None:
    pem = private_pem(P256, PrivateFormat.TraditionalOpenSSL)
    assert pem.startswith(b"-----BEGIN EC PRIVATE KEY")
    assert works(QueueAuthorizer(pem), AuthorizationVerifier([P256.public_key()]))


@PAIRS
def test_a_public_key_cannot_sign(private: Any, algorithm: str) -> None:
    public = AuthorizationKey.of(private.public_key())
    for key in (private.public_key(), public_bytes(private), public_bytes(private).decode(), public):
        with pytest.raises(InvalidRequestError, match="a key that can sign") as caught:
            QueueAuthorizer(key)
        assert caught.value.details["field"] == "key"
    assert (public.algorithm, public.signing) == (algorithm, None)


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OF_OTHER_KINDS: dict[str, Any] = {
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "brainpoolP256r1": ec.generate_private_key(ec.BrainpoolP256R1()),
    "RSA": RSA,
    "Ed448": ed448.Ed448PrivateKey.generate(),
    "X25519": x25519.X25519PrivateKey.generate(),
    "DSA": dsa.generate_private_key(2048),
}


@pytest.mark.parametrize("name", OF_OTHER_KINDS)
def test_a_key_of_another_kind_is_refused_in_every_form(name: str) -> None:
    private = OF_OTHER_KINDS[name]
    for material in (private, private.public_key(), private_pem(private), public_bytes(private)):
        for make in (QueueAuthorizer, lambda key: AuthorizationVerifier([key])):
            with pytest.raises(InvalidRequestError, match="Ed25519") as caught:
                make(material)
            assert caught.value.details["field"] == "key"


ENCRYPTED = private_pem(ED25519, password=b"a password")


@pytest.mark.parametrize(
    "pem",
    [
        ENCRYPTED,
        private_pem(P256, PrivateFormat.TraditionalOpenSSL, b"a password"),
        b"-----BEGIN PUBLIC KEY-----\nbm8ga2V5\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\nbm8ga2V5\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----" + b"x" * 64,
        b"-----BEGIN CERTIFICATE-----\nbm8ga2V5\n-----END CERTIFICATE-----\n",
        b"-----BEGIN",
        b"-----BEGIN A SECRET OF MORE THAN THIRTY-TWO BYTES-----",
        pytest.param(private_pem(ED25519)[:-40], id="cut short"),
        public_bytes(P256)[:60] + public_bytes(P256)[70:],
        private_pem(ED25519).replace(b"PRIVATE", b"PUBLIC"),
        public_bytes(ED25519).replace(b"PUBLIC", b"PRIVATE"),
        "-----BEGIN PUBLIC KEY-----\n\ud800\n-----END PUBLIC KEY-----",
    ],
)
def test_a_pem_text_that_cannot_be_read_is_refused_and_not_taken_for_a_secret(pem: bytes | str) -> None:
    with pytest.raises(InvalidRequestError, match="PEM") as caught:
        AuthorizationKey.of(pem)
    assert caught.value.details["field"] == "key"


@pytest.mark.parametrize(
    "material",
    [
        b"\xef\xbb\xbf" + public_bytes(ED25519),
        b"Bag Attributes\n    friendlyName: queue\n" + public_bytes(P256),
        b"# the queue's public key\n" + public_bytes(P256),
        public_bytes(ED25519, Encoding.OpenSSH, PublicFormat.OpenSSH),
        public_bytes(P256, Encoding.OpenSSH, PublicFormat.OpenSSH) + b" queue@example.com",
        public_bytes(ED25519, Encoding.DER),
        public_bytes(P256, Encoding.DER),
        jwt.get_algorithm_by_name("EdDSA").to_jwk(ED25519.public_key()).encode(),
        jwt.get_algorithm_by_name("ES256").to_jwk(P256.public_key()).encode(),
    ],
    ids=["BOM", "bag attributes", "comment", "ssh Ed25519", "ssh P-256", "DER Ed25519", "DER P-256", "OKP", "EC"],
)
def test_a_public_key_in_a_form_that_is_not_read_is_never_taken_for_a_secret(material: bytes) -> None:
    """A public key is no secret: whoever knows it could sign."""
    with pytest.raises(InvalidRequestError) as caught:
        AuthorizationKey.of(material)
    assert caught.value.details["field"] == "key"


@pytest.mark.parametrize("material", [None, 42, 1.5, True, ["s" * 32], {"k": SECRET}, object(), bytearray(32), x509])
def test_what_is_no_key_at_all_is_refused(material: Any) -> None:
    for make in (QueueAuthorizer, lambda key: AuthorizationVerifier([key])):
        with pytest.raises(InvalidRequestError) as caught:
            make(material)
        assert caught.value.details["field"] == "key"


@pytest.mark.parametrize("keys", [[], (), iter(()), {}, None, 42, object()], ids=type)
def test_a_verifier_needs_a_key(keys: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        AuthorizationVerifier(keys)
    assert caught.value.details["field"] in {"key", "keys"}


@pytest.mark.parametrize(
    "key", [SECRET, SECRET.encode(), public_bytes(ED25519), ED25519.public_key(), AuthorizationKey.of(SECRET)], ids=type
)
def test_one_key_is_one_key_and_not_a_collection(key: Any) -> None:
    verifier = AuthorizationVerifier(key)
    assert works(QueueAuthorizer(SECRET), verifier) or works(QueueAuthorizer(ED25519), verifier)


# ── the id of a key ──


def test_the_default_id_is_the_thumbprint_of_rfc_7638() -> None:
    """The key and its thumbprint are the example of RFC 8037, appendix A."""
    seed = urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    private = Ed25519PrivateKey.from_private_bytes(seed)
    assert AuthorizationKey.of(private).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert AuthorizationKey.of(private.public_key()).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def thumbprint(members: str) -> str:
    return base64url(hashlib.sha256(members.encode()).digest())


def test_the_thumbprint_of_a_secret_and_of_a_p256_key_as_computed_by_hand() -> None:
    secret = bytes(range(32))
    assert AuthorizationKey.of(secret).kid == thumbprint(f'{{"k":"{base64url(secret)}","kty":"oct"}}')
    for scalar in (1, 2, 0xC0FFEE):
        private = ec.derive_private_key(scalar, ec.SECP256R1())
        point = public_bytes(private, Encoding.X962, PublicFormat.UncompressedPoint)
        x, y = base64url(point[1:33]), base64url(point[33:])
        assert AuthorizationKey.of(private).kid == thumbprint(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}')


def test_coordinates_with_leading_zeros_keep_their_length_in_the_thumbprint() -> None:
    private = next(
        key
        for key in (ec.derive_private_key(scalar, ec.SECP256R1()) for scalar in range(1, 2000))
        if key.public_key().public_numbers().x >> 248 == 0
    )
    numbers = private.public_key().public_numbers()
    x, y = (base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    assert AuthorizationKey.of(private).kid == thumbprint(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}')


@PAIRS
def test_both_halves_of_a_pair_have_the_same_id_in_every_form(private: Any, algorithm: str) -> None:
    forms = (private, private.public_key(), private_pem(private), public_bytes(private))
    assert len({AuthorizationKey.of(form).kid for form in forms}) == 1
    header = jwt.get_unverified_header(QueueAuthorizer(private).authorize_refund(**ACTION).token)
    assert header == {"alg": algorithm, "kid": AuthorizationKey.of(private).kid, "typ": "JWT"}


def test_an_explicit_id_replaces_the_default_one() -> None:
    named = AuthorizationKey.of(SECRET, kid="2026-03")
    token = QueueAuthorizer(named).authorize_refund(**ACTION).token
    assert jwt.get_unverified_header(token)["kid"] == "2026-03"
    assert works(QueueAuthorizer(named), AuthorizationVerifier([named]))
    assert not works(QueueAuthorizer(named), AuthorizationVerifier([SECRET])), "the same secret under another name"


@pytest.mark.parametrize("kid", ["", "k" * 129, "a\nb", "a\0", "\ud800", 1, True, b"kid", ["kid"]])
def test_an_id_that_is_no_identifier_is_refused(kid: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        AuthorizationKey.of(SECRET, kid=kid)
    assert caught.value.details["field"] == "kid"


def test_two_keys_with_one_id_are_refused() -> None:
    same = [AuthorizationKey.of(key, kid="same") for key in (SECRET, NEW_SECRET)]
    for make in (
        lambda: AuthorizationVerifier(same),
        lambda: AuthorizationVerifier([SECRET, SECRET.encode()]),
        lambda: AuthorizationVerifier([ED25519, ED25519.public_key()]),
        lambda: QueueAuthorizer(same[0], same[1:]),
        lambda: QueueAuthorizer(SECRET, [SECRET]),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            make()  # type: ignore[no-untyped-call]
        assert caught.value.details["field"] == "kid"


# ── one key after another ──


@pytest.mark.parametrize(
    ("old", "new"),
    [(SECRET, NEW_SECRET), (SECRET, ED25519), (ED25519, P256), (P256, Ed25519PrivateKey.generate())],
    ids=["secret to secret", "secret to pair", "pair to pair", "P-256 to Ed25519"],
)
def test_a_key_is_rotated_without_a_token_being_refused_on_the_way(old: Any, new: Any) -> None:
    before, during, after = QueueAuthorizer(old), QueueAuthorizer(new, also_accept=[old]), QueueAuthorizer(new)
    outstanding = before.authorize_refund(**ACTION)
    assert during.verify(outstanding, QueueRefundAuthorization, ACTION)
    assert works(during, during)
    assert works(during, after), "what is signed meanwhile is signed with the new key"
    assert not works(during, before)
    with pytest.raises(InvalidAuthorizationError) as caught:
        after.verify(outstanding, QueueRefundAuthorization, ACTION)
    assert caught.value.details == {"cause": "unknown_key", "kid": AuthorizationKey.of(old).kid}


def test_a_verifier_with_several_public_keys_accepts_each_of_their_signers() -> None:
    signers: list[Any] = [ED25519, P256, Ed25519PrivateKey.generate(), SECRET]
    verifier = AuthorizationVerifier([key if isinstance(key, str) else key.public_key() for key in signers])
    assert all(works(QueueAuthorizer(key), verifier) for key in signers)
    assert not works(QueueAuthorizer(NEW_SECRET), verifier)


def test_also_accepted_keys_may_be_public_and_come_from_any_iterable() -> None:
    authorizer = QueueAuthorizer(SECRET, also_accept=(key.public_key() for key in (ED25519, P256)))
    assert all(works(QueueAuthorizer(key), authorizer) for key in (SECRET, ED25519, P256))


# ── what a refusal says ──

KEY = (
    "key must be a secret of at least 32 bytes (HS256), or an Ed25519 (EdDSA) or P-256 (ES256) key, "
    "as PEM text or as an object of cryptography's, not "
)
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: AuthorizationKey.of("secret"), KEY + "'a secret of 6 bytes'"),
    (lambda: AuthorizationKey.of("-----BEGIN"), KEY + "'a PEM text that cannot be read'"),
    (
        lambda: AuthorizationKey.of(public_bytes(P256, Encoding.DER)),
        KEY + "'an asymmetric key in a form that is not read'",
    ),
    (lambda: AuthorizationKey.of(OF_OTHER_KINDS["RSA"]), KEY + "'a RSAPrivateKey'"),
    (lambda: AuthorizationKey.of(OF_OTHER_KINDS["RSA"].public_key()), KEY + "'a RSAPublicKey'"),
    (lambda: AuthorizationKey.of(cast(Any, 42)), KEY + "'an int'"),
    (lambda: AuthorizationKey.of(SECRET, kid=""), "kid must be a string of 1 to 128 printable characters, not ''"),
    (lambda: QueueAuthorizer(P256.public_key()), "key must be a key that can sign, not 'a public key'"),
    (lambda: AuthorizationVerifier([]), "keys must be at least one key, not ()"),
    (
        lambda: AuthorizationVerifier(2 * [AuthorizationKey.of(SECRET, kid="same")]),
        "kid must be another one for each key, not 'same'",
    ),
    (
        lambda: AuthorizationVerifier(SECRET, leeway=timedelta(microseconds=-1)),
        "leeway must be a timedelta from 0, not datetime.timedelta(days=-1, seconds=86399, microseconds=999999)",
    ),
    (
        lambda: QueueAuthorizer(SECRET).authorize_refund(**ACTION, expires_in=timedelta(0)),
        "expires_in must be a timedelta of 1 second to 365 days, not datetime.timedelta(0)",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[-30:] for _, message in REFUSED])
def test_a_refusal_says_what_was_given_and_what_was_expected(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert str(caught.value) == message


# ── what a key does not tell ──


@pytest.mark.parametrize("material", [SECRET, SECRET.encode(), ED25519, P256, private_pem(ED25519)], ids=type)
def test_a_key_shows_its_id_and_algorithm_and_nothing_else(material: Any) -> None:
    key = AuthorizationKey.of(material)
    assert repr(key) == str(key) == f"AuthorizationKey(kid={key.kid!r}, algorithm={key.algorithm!r})"
    authorizer = QueueAuthorizer(material)
    for shown in (repr(key), repr([key]), repr(authorizer), str(authorizer)):
        assert SECRET not in shown
        assert "PRIVATE" not in shown


def test_a_key_is_frozen() -> None:
    key = AuthorizationKey.of(SECRET)
    with pytest.raises(FrozenInstanceError):
        key.algorithm = "none"  # type: ignore[misc]


@pytest.mark.parametrize(
    "material",
    [
        "too-short-secret",
        b"too-short-secret",
        ENCRYPTED,
        private_pem(RSA),
        [SECRET],
        {"k": SECRET},
        bytearray(b"x" * 32),
    ],
    ids=["text", "bytes", "encrypted", "RSA", "list", "dict", "bytearray"],
)
def test_a_refused_key_is_not_shown_by_the_error(material: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        AuthorizationKey.of(material)
    shown = f"{caught.value} {caught.value!r} {json.dumps(caught.value.details)} {caught.value.__cause__!r}"
    parts = ("too-short-secret", SECRET, "x" * 32, ENCRYPTED[40:80].decode(), private_pem(RSA)[40:80].decode())
    assert not any(part in shown for part in parts)

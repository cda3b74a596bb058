"""How a key is said: a secret, PEM, JSON or a file, each by its name, and never one for the other."""

import json
import re
import secrets
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from points_platform.core import InvalidRequestError
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, KeyFile, QueueAuthorizer
from points_platform.wallets import QueueRefundAuthorization
from support.jwks import base64url, private_jwk, private_pem, public_jwk, public_pem, secret_jwk

ED25519 = Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
OTHER = Ed25519PrivateKey.generate()
SECRET = b"the secret that the tests sign with, 2026"
PRIVATE_PEM = private_pem(ED25519)
PAIRS = pytest.mark.parametrize("private", [ED25519, P256], ids=["EdDSA", "ES256"])
ACTION: dict[str, Any] = {
    "queue_item_id": "queue-1",
    "escrow_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "user_id": "ana",
    "reason": "queue_timeout",
    "amount": 30,
}


def works(signer: Any, verifier: AuthorizationVerifier) -> bool:
    authorization = QueueAuthorizer(signer).authorize_refund(**ACTION)
    return bool(verifier.verify(authorization, QueueRefundAuthorization, ACTION))


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    return str(caught.value)


# ── the name of a place is no key ──

PATHS = [
    *("/run/secrets/queue.pub.pem", "/run/secrets/the-public-key-of-the-queue", "//server/share/the-key-of-the-queue"),
    *(
        "./keys/the-public-key-of-the-queue",
        "../the-public-key-of-the-queue-2026",
        "~/keys/of-the-queue-of-the-platform",
    ),
    *(
        "~deploy/keys/of-the-queue-of-the-platform",
        "C:\\keys\\the-public-key-of-the-queue",
        "c:/keys/the-public-key-of-it",
    ),
    *("\\\\server\\share\\the-public-key-of-the-queue", "secrets/production/of-the-queue/current-one"),
    *("Secrets/Production/Of_The_Queue/CURRENT.of.all", "secrets\\production\\of-the-queue\\current-one"),
    *("the-public-key-of-the-performance-queue.pem", "the-public-key-of-the-performance-queue.PEM"),
    *(f"the-public-key-of-the-performance-queue.{end}" for end in ("key", "pub", "json", "jwks", "jwk", "der", "crt")),
    *(f"the-public-key-of-the-performance-queue.{end}" for end in ("p8", "txt", "secret", "env", "yaml", "cer")),
    *(
        "${SECRETS}/the-public-key-of-the-queue",
        "$SECRETS/the-public-key-of-the-queue",
        "%APPDATA%\\the-key-of-the-queue",
    ),
    *(
        "file:///run/secrets/the-key-of-the-queue",
        "https://example.com/.well-known/jwks",
        "vault://secret/data/queue#key",
    ),
    *("arn:aws:secretsmanager:eu-west-1:123456789012:secret:queue", "file:/run/secrets/of-the-queue"),
    *("/run/secrets/a.pem\n/run/secrets/b.pem", "queue.pem", "/k", "/run/secrets/queue with a space in its name"),
]
SPACED = ["{}", " {}", "{}\n", "\t{}\r\n", "\ufeff{}", "'{}'", '"{}"', "{}\0", "\u00a0{}", "\n\n {} \n"]


@pytest.mark.parametrize("path", PATHS)
def test_a_text_with_the_form_of_a_path_is_refused_and_told_how_to_say_it(path: str) -> None:
    for spaced in SPACED:
        text = spaced.format(path)
        for material in (text, text.encode()):
            for make in (
                AuthorizationKey.of,
                QueueAuthorizer,
                AuthorizationVerifier,
                lambda given: QueueAuthorizer(SECRET, [given]),
            ):
                message = refusal(lambda make=make, material=material: make(material))  # type: ignore[misc]
                assert "AuthorizationKey.from_file(path)" in message
                assert "AuthorizationKey.secret(text)" in message
                assert path not in message, "it may be a secret all the same"


def test_the_name_of_a_file_that_is_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "whatever somebody has called the file of a key"
    assert AuthorizationKey.of(name).algorithm == "HS256"
    (tmp_path / name).write_bytes(public_pem(ED25519))
    for text in (name, f"{name}\n", name.encode()):
        assert "names a file" in refusal(lambda text=text: AuthorizationKey.of(text))  # type: ignore[misc]


def test_a_path_object_is_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "queue.pub.pem"
    file.write_bytes(public_pem(ED25519))
    for make in (AuthorizationKey.of, AuthorizationVerifier, lambda path: AuthorizationVerifier([path])):
        assert "AuthorizationKey.from_file(path)" in refusal(lambda make=make: make(file))  # type: ignore[misc]


def test_what_really_is_a_secret_can_be_said_whatever_it_looks_like() -> None:
    for path in PATHS:
        if len(path.encode()) >= 32:
            key = AuthorizationKey.secret(path)
            assert key.algorithm == "HS256"
            assert key == AuthorizationKey.secret(path.encode())
            assert works(key, AuthorizationVerifier([key]))
    assert AuthorizationKey.secret(SECRET) == AuthorizationKey.of(SECRET)
    assert AuthorizationKey.secret(SECRET, kid="2026").kid == "2026"


@pytest.mark.parametrize(
    "secret",
    [
        "a secret of at least 32 bytes, from your vault",
        "correct horse battery staple, and / or a slash in it",
        "and one that ends with a full stop, as sentences do.",
        "k3Jv/x9QeTnZ0y+R5mDw8UuHcPq2LsXaGfB7iOoV4Ck=",
        "k3Jv/x9QeTnZ0yR5mDw8UuH/PqLsXaGfBiOoVCkzz",
        "0123456789abcdef0123456789abcdef0123456789abcdef",
        "a-secret-of-words-in-lower-case-of-some-length",
        '{"this": "is no key, but a text with braces"} ok',
    ],
)
def test_a_secret_that_does_not_look_like_a_path_needs_no_name(secret: str) -> None:
    assert AuthorizationKey.of(secret).algorithm == "HS256"
    assert AuthorizationKey.of(secret) == AuthorizationKey.secret(secret)


def test_random_secrets_are_not_taken_for_paths() -> None:
    for _ in range(2000):
        AuthorizationKey.of(secrets.token_bytes(32))
        AuthorizationKey.of(secrets.token_hex(32))
        AuthorizationKey.of(secrets.token_urlsafe(48))
        if not (text := b64encode(secrets.token_bytes(48)).decode()).startswith("/"):
            AuthorizationKey.of(text)


@pytest.mark.parametrize("secret", ["s" * 31, b"", None, 5, ["s" * 32], ED25519, Path("/run/secrets/queue")])
def test_what_is_no_secret_is_refused_as_one(secret: Any) -> None:
    assert "at least 32 bytes" in refusal(lambda: AuthorizationKey.secret(secret))


@PAIRS
def test_a_public_key_is_never_a_secret_even_where_somebody_says_so(private: Any) -> None:
    public = private.public_key()
    for form in (
        public_pem(private),
        private_pem(private),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        json.dumps(public_jwk(private)).encode(),
        json.dumps({"keys": [public_jwk(private)]}).encode(),
        json.dumps(secret_jwk(SECRET)).encode(),
    ):
        message = refusal(lambda form=form: AuthorizationKey.secret(form))  # type: ignore[misc]
        assert ("from_jwk" in message) == form.startswith(b"{")


# ── PEM ──


@PAIRS
def test_from_pem_reads_one_key(private: Any) -> None:
    for pem in (public_pem(private), b"\xef\xbb\xbf" + public_pem(private), b"# the queue's\n" + public_pem(private)):
        key = AuthorizationKey.from_pem(pem)
        assert (key, key.signing) == (AuthorizationKey.of(private.public_key()), None)
        assert AuthorizationKey.from_pem(pem.decode()) == key
    assert works(
        AuthorizationKey.from_pem(private_pem(private), kid="x"),
        AuthorizationVerifier(AuthorizationKey.from_pem(public_pem(private), kid="x")),
    )


def test_a_pem_text_of_several_keys_does_not_silently_lose_all_but_one() -> None:
    both = public_pem(ED25519) + public_pem(OTHER)
    for make in (AuthorizationKey.from_pem, AuthorizationKey.of, lambda pem: AuthorizationVerifier([pem])):
        assert "2 keys" in refusal(lambda make=make: make(both))  # type: ignore[misc]


@pytest.mark.parametrize(
    "material",
    ["/run/secrets/queue.pem", "a secret of at least 32 bytes, from your vault", b"", None, 5, Path("x.pem")],
)
def test_from_pem_refuses_what_is_no_pem(material: Any) -> None:
    message = refusal(lambda: AuthorizationKey.from_pem(material))
    assert ("from_file" in message) == (material == "/run/secrets/queue.pem")


# ── JWK ──


@PAIRS
def test_from_jwk_reads_both_halves_from_a_mapping_and_from_text(private: Any) -> None:
    signing, verifying = (AuthorizationKey.from_jwk(make(private)) for make in (private_jwk, public_jwk))
    assert (signing.kid, signing.algorithm) == (verifying.kid, verifying.algorithm)
    assert verifying == AuthorizationKey.of(private.public_key())
    assert verifying.signing is None
    assert works(signing, AuthorizationVerifier([verifying]))
    text = json.dumps(public_jwk(private))
    assert AuthorizationKey.from_jwk(text) == AuthorizationKey.from_jwk(text.encode()) == verifying


def test_from_jwk_reads_a_secret_and_the_kid_that_stands_in_it() -> None:
    assert AuthorizationKey.from_jwk(secret_jwk(SECRET)) == AuthorizationKey.secret(SECRET)
    assert AuthorizationKey.from_jwk(secret_jwk(SECRET, kid="2026")).kid == "2026"
    assert AuthorizationKey.from_jwk(secret_jwk(SECRET, kid="2026"), kid="2027").kid == "2027"
    assert AuthorizationKey.from_jwk(public_jwk(ED25519, kid=None)).kid == AuthorizationKey.of(ED25519).kid


def test_the_example_of_rfc_8037_has_the_thumbprint_that_stands_there() -> None:
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    key = AuthorizationKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": x})
    assert key.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


ALLOWED = [
    {"alg": "EdDSA"},
    {"alg": "Ed25519"},
    {"use": "sig"},
    {"key_ops": ["verify"]},
    {"key_ops": ["sign", "verify"]},
]


@pytest.mark.parametrize("more", ALLOWED, ids=str)
def test_members_that_fit_are_welcome(more: Any) -> None:
    assert AuthorizationKey.from_jwk(public_jwk(ED25519, **more)) == AuthorizationKey.of(ED25519.public_key())


X, Y = public_jwk(P256)["x"], public_jwk(P256)["y"]
PEM_AS_SECRET = [public_pem(ED25519), public_pem(P256).strip()]
BAD_JWKS: dict[str, Any] = {
    "no object": [1],
    "a number": 5,
    "nothing": None,
    "no members": {},
    "no kty": {"crv": "Ed25519", "x": X},
    "another curve": {**public_jwk(P256), "crv": "P-384"},
    "a curve of the other kty": {**public_jwk(ED25519), "crv": "P-256"},
    "Ed25519 as EC": {**public_jwk(ED25519), "kty": "EC"},
    "X25519": {**public_jwk(ED25519), "crv": "X25519"},
    "RSA": {"kty": "RSA", "n": X, "e": "AQAB"},
    "kty in lower case": {**public_jwk(P256), "kty": "ec"},
    "kty of no text": {**public_jwk(P256), "kty": ["EC"]},
    "a public key as a secret": {**public_jwk(ED25519), "kty": "oct"},
    "a public key's PEM as a secret": secret_jwk(PEM_AS_SECRET[0]),
    "a public key's stripped PEM as a secret": secret_jwk(PEM_AS_SECRET[1]),
    "a public key's DER as a secret": secret_jwk(
        P256.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ),
    "a public key's JWK as a secret": secret_jwk(json.dumps(public_jwk(P256)).encode()),
    "a short secret": secret_jwk(b"x" * 31),
    "a secret of no text": {"kty": "oct", "k": 5},
    "alg of a secret": public_jwk(ED25519, alg="HS256"),
    "alg of the other pair": public_jwk(ED25519, alg="ES256"),
    "alg none": public_jwk(P256, alg="none"),
    "alg of no text": public_jwk(P256, alg=["ES256"]),
    "alg nothing": public_jwk(P256, alg=None),
    "alg of a pair for a secret": secret_jwk(SECRET, alg="EdDSA"),
    "alg HS512": secret_jwk(SECRET, alg="HS512"),
    "for encryption": public_jwk(P256, use="enc"),
    "for agreement": public_jwk(P256, key_ops=["deriveKey"]),
    "for nothing": public_jwk(P256, key_ops=[]),
    "operations of no list": public_jwk(P256, key_ops="verify"),
    "x too short": {**public_jwk(ED25519), "x": public_jwk(ED25519)["x"][:-2]},
    "x too long": {**public_jwk(ED25519), "x": base64url(ED25519.public_key().public_bytes_raw() + b"\0")},
    "x with padding": {**public_jwk(ED25519), "x": public_jwk(ED25519)["x"] + "="},
    "x with unused bits": {**public_jwk(ED25519), "x": base64url(b"\xff" * 32)[:-1] + "9"},
    "x with a line end": {**public_jwk(ED25519), "x": public_jwk(ED25519)["x"] + "\n"},
    "x missing": {"kty": "OKP", "crv": "Ed25519"},
    "x of no text": {**public_jwk(ED25519), "x": 7},
    "x in plain base64": {**public_jwk(ED25519), "x": b64encode(b"\xff" * 32).decode().rstrip("=")},
    "a point that is not on the curve": {**public_jwk(P256), "y": X},
    "coordinates exchanged": {**public_jwk(P256), "x": Y, "y": X},
    "no second coordinate": {"kty": "EC", "crv": "P-256", "x": X},
    "halves of two keys": {**public_jwk(ED25519), "d": private_jwk(OTHER)["d"]},
    "halves of two keys of P-256": {**public_jwk(P256), "d": private_jwk(ED25519)["d"]},
    "zero as the private half": {**public_jwk(P256), "d": base64url(bytes(32))},
    "the private half too short": {**public_jwk(ED25519), "d": "AA"},
    "a kid that is none": public_jwk(ED25519, kid=5),
    "an empty kid": public_jwk(ED25519, kid=""),
    "a kid with a line end": public_jwk(ED25519, kid="a\nb"),
    "a document": {"keys": [public_jwk(ED25519)]},
}


@pytest.mark.parametrize("name", BAD_JWKS)
def test_a_jwk_that_is_not_exactly_a_key_is_refused(name: str) -> None:
    jwk = BAD_JWKS[name]
    for given in (jwk, json.dumps(jwk), json.dumps(jwk).encode()):
        message = refusal(lambda given=given: AuthorizationKey.from_jwk(given))  # type: ignore[misc]
        for private in (ED25519, OTHER):
            assert private_jwk(private)["d"] not in message
        assert SECRET.decode() not in message


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", '"kty"', "\ud800", "[" * 100_000, '{"kty":' * 100_000, "/run/secrets/queue.jwk"),
        '{"kty":"OKP","kty":"oct","crv":"Ed25519","k":"' + base64url(SECRET) + '"}',
        json.dumps(public_jwk(ED25519))[:-1] + ',"x":"' + base64url(bytes(32)) + '"}',
        json.dumps(public_jwk(ED25519))[:-5],
        b"\xff\xfe\x00",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_a_text_that_is_no_jwk_is_refused(text: Any) -> None:
    message = refusal(lambda: AuthorizationKey.from_jwk(text))
    assert ("from_file" in message) == (text == "/run/secrets/queue.jwk")


# ── files ──


@PAIRS
def test_from_file_reads_pem_and_jwk(private: Any, tmp_path: Path) -> None:
    file = tmp_path / "key"
    for content in (
        private_pem(private),
        json.dumps(private_jwk(private)).encode(),
        b"\n " + json.dumps(private_jwk(private)).encode(),
    ):
        file.write_bytes(content)
        for path in (file, str(file)):
            key = AuthorizationKey.from_file(path)
            assert key.kid == AuthorizationKey.of(private).kid
            assert works(key, AuthorizationVerifier([private.public_key()]))
    assert AuthorizationKey.from_file(file, kid="2026").kid == "2026"


def test_from_file_refuses_what_it_cannot_read_and_names_the_path(tmp_path: Path) -> None:
    empty, secret, large, several = (tmp_path / f"{name}.pem" for name in ("empty", "secret", "large", "several"))
    empty.touch()
    secret.write_bytes(SECRET)
    large.write_bytes(b"{" + b" " * (1 << 20))
    several.write_bytes(public_pem(ED25519) + public_pem(P256))
    assert "missing.pem (No such file or directory)" in refusal(lambda: AuthorizationKey.from_file("missing.pem"))
    assert "Is a directory" in refusal(lambda: AuthorizationKey.from_file(tmp_path))
    assert "too large" in refusal(lambda: AuthorizationKey.from_file(large))
    assert "2 keys" in refusal(lambda: AuthorizationKey.from_file(several))
    for file in (empty, secret):
        message = refusal(lambda file=file: AuthorizationKey.from_file(file))  # type: ignore[misc]
        assert "a PEM text or a JWK" in message
        assert SECRET.decode() not in message


@pytest.mark.parametrize("path", [None, 5, b"x.pem", [], "a\0b", "x" * 5000, ""])
def test_what_is_no_path_is_refused(path: Any) -> None:
    assert refusal(lambda: AuthorizationKey.from_file(path))


def test_a_key_that_was_taken_for_a_path_is_not_shown() -> None:
    shown = [refusal(partial(AuthorizationKey.from_file, given)) for given in (SECRET.decode(), PRIVATE_PEM.decode())]
    shown += [refusal(lambda: AuthorizationVerifier(KeyFile(SECRET.decode()))), repr(KeyFile(SECRET.decode()))]
    assert not any("tests sign with" in text or "PRIVATE" in text for text in shown)


# ── documents ──


def document(*entries: Any) -> Any:
    return {"keys": list(entries)}


def test_a_verifier_takes_a_jwks_as_a_mapping_and_as_text() -> None:
    keys = document(public_jwk(ED25519), public_jwk(P256, kid="2026", use="sig", alg="ES256"))
    for given in (keys, json.dumps(keys), json.dumps(keys).encode(), f"\n{json.dumps(keys)}"):
        verifier = AuthorizationVerifier(given)
        assert works(ED25519, verifier)
        assert works(AuthorizationKey.of(P256, kid="2026"), verifier)


def test_keys_for_something_else_are_passed_over() -> None:
    others = [
        {"kty": "RSA", "n": X, "e": "AQAB", "alg": "RS256", "kid": "rsa"},
        {**public_jwk(P256), "crv": "P-384", "kid": "384"},
        public_jwk(P256, use="enc"),
        public_jwk(P256, key_ops=["deriveBits"]),
        {"kty": "of tomorrow"},
        {},
    ]
    assert works(ED25519, AuthorizationVerifier(document(*others, public_jwk(ED25519))))
    assert "at least one" in refusal(lambda: AuthorizationVerifier(document(*others)))


BAD_DOCUMENTS: dict[str, tuple[Any, str]] = {
    "empty": (document(), "at least one"),
    "no list": ({"keys": public_jwk(ED25519)}, "list"),
    "nothing": ({"keys": None}, "list"),
    "too many": (document(*[{}] * 1001), "at most 1000"),
    "of no objects": (document(public_jwk(ED25519), "key"), "no object"),
    "a private key": (document(public_jwk(P256), private_jwk(ED25519)), "private"),
    "a private key for something else": (document(public_jwk(ED25519), private_jwk(P256, use="enc")), "private"),
    "a private key of RSA": (document(public_jwk(ED25519), {"kty": "RSA", "n": X, "e": "AQAB", "p": X}), "private"),
    "a secret": (document(public_jwk(ED25519), secret_jwk(SECRET)), "secret"),
    "a public key said to be a secret": (document({**public_jwk(ED25519), "kty": "oct", "k": X}), "secret"),
    "one kid twice": (document(public_jwk(ED25519, kid="a"), public_jwk(P256, kid="a")), "another one for each key"),
    "one key twice": (document(public_jwk(ED25519), public_jwk(ED25519)), "another one for each key"),
    "alg of a secret": (document(public_jwk(P256), public_jwk(ED25519, alg="HS256")), "alg"),
    "a key that cannot be read": (document(public_jwk(P256), {**public_jwk(ED25519), "x": "AA"}), "x is missing"),
    "a kid that is none": (document(public_jwk(P256, kid="")), "kid"),
    "no document": (public_jwk(ED25519), "JWKS"),
}


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_a_document_that_is_wrong_is_refused_whole(name: str) -> None:
    given, why = BAD_DOCUMENTS[name]
    verifier, signer = AuthorizationVerifier([OTHER.public_key()]), QueueAuthorizer(SECRET)
    for make in (
        AuthorizationVerifier,
        verifier.replace_keys,
        signer.replace_keys,
        lambda keys: QueueAuthorizer(SECRET, keys),
    ):
        message = refusal(lambda make=make: make(given))  # type: ignore[misc]
        assert re.search(why, message), message
        assert private_jwk(ED25519)["d"] not in message
    assert works(OTHER, verifier), "the keys of before stay"


def test_a_text_with_json_that_is_broken_is_no_document_and_no_secret() -> None:
    whole = json.dumps(document(public_jwk(ED25519), public_jwk(P256)))
    for text in (whole + "}", whole.replace('"keys"', '"keys": [], "keys"'), json.dumps(public_jwk(ED25519))):
        assert refusal(lambda text=text: AuthorizationVerifier(text))  # type: ignore[misc]


@PAIRS
def test_a_public_key_is_no_secret_beside_itself(private: Any) -> None:
    """Whoever lists it twice, once as what it is and once for a secret, would accept everybody's tokens."""
    public = AuthorizationKey.of(private.public_key())
    raw = public_jwk(private)
    point = b"".join(base64_bytes(raw[name]) for name in ("x", "y") if name in raw)
    for form in (point, point[:32], raw["x"].encode(), b64encode(point), point.hex().encode(), b64encode(point[:32])):
        secret = AuthorizationKey.secret(form)
        for make in (lambda: AuthorizationVerifier([public, secret]), lambda: QueueAuthorizer(secret, [public])):  # noqa: B023
            assert "public key" in refusal(make)


def base64_bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=")

"""Keys as JSON (RFC 7517): one of them, or a document of public ones. Read strictly, since a key decides alone.

What is here returns material for ``AuthorizationKey``, and raises ``ValueError`` with a reason that shows no material.
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..core.values import plain_string

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
Jwk = Mapping[str, Any]

BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
COORDINATE_BYTES = 32
MOST_KEYS = 1000
# RFC 7518, sections 6.2.2, 6.3.2 and 6.4: what nobody but the signer may know.
PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
# The curve and the names of the one algorithm that a key of it is for; RFC 9864 has a second name for EdDSA.
ALGORITHMS = {
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
    ("EC", "P-256"): ("ES256",),
    ("oct", None): ("HS256",),
}


def parsed(text: str | bytes) -> dict[str, Any]:
    """A JSON object in which no name stands twice: of two readers each might take another one."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise ValueError("a text that is no JSON object, or has a name twice") from None
    if not isinstance(value, dict):
        raise ValueError("a JSON text that is no object")
    return value


def is_document(value: object) -> bool:
    """Whether a value is a JWKS: an object with ``keys``."""
    return isinstance(value, Mapping) and "keys" in value


def material_of(jwk: Jwk) -> bytes | PrivateKey | PublicKey:
    """The secret, private or public key that a JWK is."""
    if not isinstance(jwk, Mapping):
        raise ValueError("what is no JSON object")
    if is_document(jwk):
        raise ValueError("a JWKS, which a verifier takes as it is")
    jwk = _plain_members(jwk)
    if not _signs(jwk):
        raise ValueError("a JWK that is not for signatures")
    if (names := _algorithms(jwk)) is None:
        raise ValueError("a JWK of a kind that is not read")
    if "alg" in jwk and jwk["alg"] not in names:
        raise ValueError("a JWK whose alg is not that of its key")
    if jwk["kty"] == "oct":
        return _bytes(jwk, "k")
    public, private = (_ed25519 if jwk["kty"] == "OKP" else _p256)(jwk)
    if private is not None and private.public_key() != public:
        raise ValueError("a JWK whose halves are of two keys")
    return private or public


def public_keys(document: object) -> list[Jwk]:
    """The JWKs of a JWKS that verify our algorithms. Others are passed over, as RFC 7517 (section 5) asks.

    A document that holds private material is refused whole, of whatever kind: everybody reads such documents.
    """
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list) or len(entries) > MOST_KEYS:
        raise ValueError(f"a JWKS without a list of at most {MOST_KEYS} keys")
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError("a JWKS with a key that is no object")
    if any(PRIVATE_MEMBERS & entry.keys() for entry in entries):
        raise ValueError("a JWKS with a private or a secret key in it")
    read = [(entry, _plain_members(entry)) for entry in entries]
    return [entry for entry, plain in read if _signs(plain) and _algorithms(plain) is not None]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError
    return members


def _plain_members(jwk: Jwk) -> dict[str, Any]:
    """Texts and lists of texts by their characters; anything else stands in no member that is looked at."""
    return {
        name: [plain_string(each) for each in value] if isinstance(value, list) else plain_string(value)
        for name, value in jwk.items()
    }


def _signs(jwk: Jwk) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list):
        return False
    return jwk.get("use", "sig") == "sig" and ("verify" in operations or "sign" in operations)


def _algorithms(jwk: Jwk) -> tuple[str, ...] | None:
    kind = (jwk.get("kty"), jwk.get("crv"))
    return next((names for known, names in ALGORITHMS.items() if known == kind), None)


def _ed25519(jwk: Jwk) -> tuple[Ed25519PublicKey, Ed25519PrivateKey | None]:
    public = Ed25519PublicKey.from_public_bytes(_bytes(jwk, "x", COORDINATE_BYTES))
    if "d" not in jwk:
        return public, None
    return public, Ed25519PrivateKey.from_private_bytes(_bytes(jwk, "d", COORDINATE_BYTES))


def _p256(jwk: Jwk) -> tuple[EllipticCurvePublicKey, EllipticCurvePrivateKey | None]:
    x, y = (int.from_bytes(_bytes(jwk, name, COORDINATE_BYTES)) for name in ("x", "y"))
    try:
        public = EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
        if "d" not in jwk:
            return public, None
        return public, derive_private_key(int.from_bytes(_bytes(jwk, "d", COORDINATE_BYTES)), SECP256R1())
    except ValueError:
        raise ValueError("a JWK whose numbers are no key of P-256") from None


def _bytes(jwk: Jwk, name: str, length: int | None = None) -> bytes:
    """What a member says in base64url without padding; only in the one text that these bytes have."""
    text = plain_string(jwk.get(name))
    if text is not None and BASE64URL.fullmatch(text) and len(text) % 4 != 1:
        value = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if urlsafe_b64encode(value).rstrip(b"=") == text.encode() and len(value) == (length or len(value)):
            return value
    raise ValueError(f"a JWK whose {name} is missing or cannot be read")

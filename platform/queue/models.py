"""The keys that sign and verify authorizations. The algorithm belongs to the key, never to a token."""

import hashlib
import json
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt import InvalidKeyError, get_algorithm_by_name
from jwt.algorithms import HMACAlgorithm

from ..core.errors import InvalidRequestError
from ..core.values import check_identifier, plain_string

MIN_SECRET_BYTES = 32  # RFC 7518, section 3.2: a key of at least the size of the hash
KEY_EXPECTED = (
    f"a secret of at least {MIN_SECRET_BYTES} bytes (HS256), or an Ed25519 (EdDSA) or P-256 (ES256) key, "
    "as PEM text or as an object of cryptography's"
)
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
KeyMaterial = str | bytes | PrivateKey | PublicKey

# The members that RFC 7638 has in a thumbprint, per key type, in its order.
THUMBPRINT_MEMBERS = {"oct": ("k", "kty"), "OKP": ("crv", "kty", "x"), "EC": ("crv", "kty", "x", "y")}


@dataclass(frozen=True, kw_only=True)
class AuthorizationKey:
    """A key with its one algorithm and its ``kid``. ``signing`` is ``None`` for a public key."""

    kid: str
    algorithm: str
    signing: Any = field(repr=False)
    verifying: Any = field(repr=False)

    @classmethod
    def of(cls, material: KeyMaterial, *, kid: str | None = None) -> "AuthorizationKey":
        """The key that this material is.

        A ``str`` or ``bytes`` that starts with ``-----BEGIN`` is read as PEM, anything else is an HS256
        secret. Without a ``kid`` it is the JWK thumbprint (RFC 7638), the same for both halves of a pair.
        Raises ``InvalidRequestError``, which never shows the material.
        """
        algorithm, signing, verifying = _halves(_loaded(material))
        if kid is None:
            kid = _thumbprint(algorithm, verifying)
        return cls(kid=check_identifier("kid", kid), algorithm=algorithm, signing=signing, verifying=verifying)


def _loaded(material: object) -> object:
    if (text := plain_string(material)) is not None:
        material = text.encode(errors="surrogatepass")
    if not isinstance(material, bytes) or not material.lstrip().startswith(b"-----BEGIN"):
        return material
    load = load_pem_private_key if b"PRIVATE KEY" in material else None
    try:
        return load(material, password=None) if load else load_pem_public_key(material)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise _refused("a PEM text that cannot be read") from None


def _halves(material: object) -> tuple[str, Any, Any]:
    """Algorithm, signing half (or ``None``) and verifying half."""
    if isinstance(material, bytes):
        if len(material) < MIN_SECRET_BYTES:
            raise _refused(f"a secret of {len(material)} bytes")
        try:
            HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(material)
        except InvalidKeyError:
            # Everybody may know a public key, so whoever took one for a secret would accept anybody's tokens.
            raise _refused("an asymmetric key in a form that is not read") from None
        return "HS256", material, material
    private = isinstance(material, PrivateKey)
    public = material.public_key() if isinstance(material, PrivateKey) else material
    if isinstance(public, Ed25519PublicKey):
        return "EdDSA", material if private else None, public
    if isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1):
        return "ES256", material if private else None, public
    raise _refused(f"a {type(material).__name__}")


def _refused(value: str) -> InvalidRequestError:
    return InvalidRequestError(field="key", value=value, expected=KEY_EXPECTED)


def _thumbprint(algorithm: str, verifying: Any) -> str:
    jwk: dict[str, Any] = get_algorithm_by_name(algorithm).to_jwk(verifying, as_dict=True)
    members = {name: jwk[name] for name in THUMBPRINT_MEMBERS[jwk["kty"]]}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    return urlsafe_b64encode(digest).decode().rstrip("=")

"""The keys that sign and verify authorizations. The algorithm belongs to the key, never to a token."""

import hashlib
import json
import os
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt import InvalidKeyError, PyJWK, get_algorithm_by_name
from jwt.algorithms import HMACAlgorithm
from jwt.utils import force_bytes

from ..core.errors import InvalidRequestError
from ..core.plain import one
from ..core.values import check_identifier, plain_string
from . import jwk
from .jwk import PrivateKey, PublicKey
from .places import is_place, shown_place

MIN_SECRET_BYTES = 32  # RFC 7518, section 3.2: a key of at least the size of the hash
KEY_EXPECTED = (
    f"a secret of at least {MIN_SECRET_BYTES} bytes (HS256), or an Ed25519 (EdDSA) or P-256 (ES256) key, "
    "as PEM text or as an object of cryptography's"
)
SAY_FILE = (
    "AuthorizationKey.from_file(path) for a key in a file, AuthorizationKey.secret(text) for what really is a secret"
)
MAX_FILE_BYTES = 1 << 20
BEGIN = b"-----BEGIN"
PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
PEM_REST = re.compile(rb"^\s*-|-----BEGIN", re.MULTILINE)  # a block that was cut off, or is still being written
PEM_PARAMETERS = b"EC PARAMETERS"  # what some releases of OpenSSL write before a private key
KeyMaterial = str | bytes | PrivateKey | PublicKey

# The members that RFC 7638 has in a thumbprint, per key type, in its order.
THUMBPRINT_MEMBERS = {"oct": ("k", "kty"), "OKP": ("crv", "kty", "x"), "EC": ("crv", "kty", "x", "y")}


class LookedAt(HMACAlgorithm):
    """HMAC with a secret that is known to be no key of another kind."""

    def prepare_key(self, key: str | bytes) -> bytes:
        """The secret as it is."""
        return force_bytes(key)


@dataclass(frozen=True, kw_only=True)
class AuthorizationKey:
    """A key with its one algorithm and its ``kid``. ``signing`` is ``None`` for a public key.

    Without a ``kid`` it is the JWK thumbprint (RFC 7638), the same for both halves of a pair. Whatever makes
    one raises ``InvalidRequestError``, which never shows the material.
    """

    kid: str
    algorithm: str
    signing: Any = field(repr=False)
    verifying: Any = field(repr=False)

    @cached_property
    def verifier(self) -> Any:
        """What PyJWT verifies with. A secret has been looked at once: it would look at it anew for each token."""
        if self.algorithm != "HS256":
            return self.verifying
        secret = HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(self.verifying)
        key = PyJWK.from_dict(HMACAlgorithm.to_jwk(secret, as_dict=True), "HS256")
        key.Algorithm = LookedAt(HMACAlgorithm.SHA256)
        return key

    @classmethod
    def of(cls, material: KeyMaterial, *, kid: str | None = None) -> "AuthorizationKey":
        """The key that this material is, by its form.

        A ``str`` or ``bytes`` that starts with ``-----BEGIN`` is read as PEM, anything else is an HS256
        secret. A text that names a file, or has the form of a path or an address, is refused: whoever knows
        the path could sign. Say ``from_file`` for the file, ``secret`` for a secret that looks so.
        """
        if isinstance(material, os.PathLike):
            raise _refused("a path", SAY_FILE)
        plain = _plain(material)
        if not isinstance(plain, bytes):
            return cls._made(plain, kid)
        if plain.lstrip().startswith(BEGIN):
            return cls.from_pem(plain, kid=kid)
        _check_no_place(plain)
        return cls.secret(plain, kid=kid)

    @classmethod
    def secret(cls, material: str | bytes, *, kid: str | None = None) -> "AuthorizationKey":
        """An HS256 key of a secret of at least 32 bytes, whatever it looks like; a key in PEM or JSON is none."""
        plain = _plain(material)
        if not isinstance(plain, bytes):
            raise _refused(one(type(material)), f"a secret of at least {MIN_SECRET_BYTES} bytes")
        if len(plain) < MIN_SECRET_BYTES:
            raise _refused(f"a secret of {len(plain)} bytes")
        return cls._made(plain, kid)

    @classmethod
    def from_pem(cls, material: str | bytes, *, kid: str | None = None) -> "AuthorizationKey":
        """The one Ed25519 or P-256 key of a PEM text, private (not encrypted) or public."""
        keys = _pem_keys(material)
        if len(keys) > 1:
            raise _refused(f"a PEM text with {len(keys)} keys", "a PEM text with one key")
        return cls._made(keys[0], kid)

    @classmethod
    def from_jwk(cls, material: Mapping[str, Any] | str | bytes, *, kid: str | None = None) -> "AuthorizationKey":
        """The key of a JWK (RFC 7517): ``OKP`` with Ed25519, ``EC`` with P-256, or ``oct`` for a secret.

        Its own ``kid`` counts unless another one is given. An ``alg`` that is not that of the key is refused.
        """
        try:
            given = (
                material if isinstance(material, Mapping) else jwk.parsed(_text(material, "a JWK, or its JSON text"))
            )
            made = jwk.material_of(given)
        except ValueError as error:
            raise _refused(str(error), "a JWK with an Ed25519, a P-256 or an oct key") from None
        own = given.get("kid") if kid is None else kid
        return cls.secret(made, kid=own) if isinstance(made, bytes) else cls._made(made, own)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, kid: str | None = None) -> "AuthorizationKey":
        """The one key of a file, PEM or JWK. ``KeyFile`` is for several, and for a file that is read again.

        A secret is not read from a file, since nobody knows which line end is a part of it: read it yourself
        and say ``secret``.
        """
        content = read_key_file(path)
        if content.lstrip().startswith(b"{"):
            return cls.from_jwk(content, kid=kid)
        if BEGIN in content:
            return cls.from_pem(content, kid=kid)
        raise _refused("a file with neither", "a file with a PEM text or a JWK")

    @classmethod
    def _made(cls, material: object, kid: str | None) -> "AuthorizationKey":
        algorithm, signing, verifying = _halves(material)
        if kid is None:
            kid = _thumbprint(algorithm, verifying)
        return cls(kid=check_identifier("kid", kid), algorithm=algorithm, signing=signing, verifying=verifying)


def keys_of_document(document: Mapping[str, Any] | str | bytes) -> tuple[AuthorizationKey, ...]:
    """The keys of a JWKS document of public keys (RFC 7517), those for other purposes passed over.

    Raises ``InvalidRequestError``, also for a document with private material and one that leaves no key.
    """
    try:
        read = document if isinstance(document, Mapping) else jwk.parsed(document)
        keys = tuple(AuthorizationKey.from_jwk(entry) for entry in jwk.public_keys(read))
    except ValueError as error:
        raise _refused(str(error), "a JWKS of public keys") from None
    if not keys:
        raise _refused("a JWKS without one", "a JWKS with at least one Ed25519 or P-256 key that verifies")
    return keys


def keys_of_file(content: bytes) -> tuple[AuthorizationKey, ...]:
    """The keys of a file's content: a JWKS, a JWK, or PEM texts one after the other. Raises ``InvalidRequestError``."""
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return tuple(AuthorizationKey._made(key, None) for key in _pem_keys(content))
    try:
        document = jwk.parsed(content)
    except ValueError as error:
        raise _refused(str(error), "a JWKS, a JWK or PEM texts") from None
    return keys_of_document(document) if jwk.is_document(document) else (AuthorizationKey.from_jwk(document),)


def read_key_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a file of keys, of at most 1 MiB. Raises ``InvalidRequestError``."""
    if not isinstance(path, str | os.PathLike):
        raise _refused(one(type(path)), "the path of a file with a key")
    path = plain_string(path) or path
    shown = shown_place(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no path"
        raise _refused(f"{shown} ({reason})", "the path of a file with a key that can be read") from None
    if len(content) > MAX_FILE_BYTES:
        raise _refused(f"{shown} (too large)", f"a file of at most {MAX_FILE_BYTES} bytes")
    return content


def _plain(material: object) -> object:
    """A text as its bytes, anything else as it is."""
    text = plain_string(material)
    return material if text is None else text.encode(errors="surrogatepass")


def _text(material: object, expected: str) -> bytes:
    plain = _plain(material)
    if not isinstance(plain, bytes):
        raise _refused("a path" if isinstance(material, os.PathLike) else one(type(material)), expected)
    _check_no_place(plain)
    return plain


def _check_no_place(material: bytes) -> None:
    try:
        text = material.decode()
    except UnicodeDecodeError:
        return  # random bytes
    if is_place(text):
        raise _refused("a text that names a file, or has the form of a path or an address", SAY_FILE)


def _pem_keys(material: object) -> list[PrivateKey | PublicKey]:
    """The keys of PEM texts, at least one, of which each is whole."""
    content = _text(material, "a PEM text")
    blocks = [found for found in PEM_BLOCK.finditer(content) if found[1] != PEM_PARAMETERS]
    if not blocks or PEM_REST.search(PEM_BLOCK.sub(b"", content)):
        raise _refused("a PEM text that cannot be read")
    return [_pem_key(found[0], found[1]) for found in blocks]


def _pem_key(block: bytes, label: bytes) -> Any:
    try:
        return load_pem_private_key(block, password=None) if b"PRIVATE" in label else load_pem_public_key(block)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise _refused("a PEM text that cannot be read") from None


def _halves(material: object) -> tuple[str, Any, Any]:
    """Algorithm, signing half (or ``None``) and verifying half."""
    if isinstance(material, bytes):
        if material.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")) and b'"kty"' in material:
            # Also where it is cut off: what is left of a public key is as well known.
            raise _refused(
                "JSON of a key", "AuthorizationKey.from_jwk(text) for a JWK, and a JWKS for the verifier itself"
            )
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
    raise _refused(one(type(material)))


def _refused(value: str, expected: str = KEY_EXPECTED) -> InvalidRequestError:
    return InvalidRequestError(field="key", value=value, expected=expected)


def _thumbprint(algorithm: str, verifying: Any) -> str:
    members: dict[str, Any] = get_algorithm_by_name(algorithm).to_jwk(verifying, as_dict=True)
    members = {name: members[name] for name in THUMBPRINT_MEMBERS[members["kty"]]}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    return urlsafe_b64encode(digest).decode().rstrip("=")

"""Keys as JSON, made by hand."""

from base64 import urlsafe_b64encode
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

Json = dict[str, Any]


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def public_jwk(private: Ed25519PrivateKey | EllipticCurvePrivateKey, **more: Any) -> Json:
    if isinstance(private, Ed25519PrivateKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": base64url(private.public_key().public_bytes_raw()), **more}
    numbers = private.public_key().public_numbers()
    x, y = (base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, **more}


def private_jwk(private: Ed25519PrivateKey | EllipticCurvePrivateKey, **more: Any) -> Json:
    if isinstance(private, Ed25519PrivateKey):
        return public_jwk(private, d=base64url(private.private_bytes_raw()), **more)
    scalar = private.private_numbers().private_value
    return public_jwk(private, d=base64url(scalar.to_bytes(32, "big")), **more)


def secret_jwk(secret: bytes, **more: Any) -> Json:
    return {"kty": "oct", "k": base64url(secret), **more}


def private_pem(private: Ed25519PrivateKey | EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(private: Ed25519PrivateKey | EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

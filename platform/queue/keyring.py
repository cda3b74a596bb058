"""The keys that a verifier accepts: one immutable set at a time, exchanged as a whole while others verify."""

import logging
import os
from base64 import b16encode, b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from time import monotonic
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ..core.errors import InvalidRequestError
from ..core.logs import say
from ..core.values import plain_string
from . import jwk
from .jwk import PublicKey
from .models import AuthorizationKey, KeyMaterial, keys_of_document, keys_of_file, read_key_file
from .places import shown_place

log = logging.getLogger(__name__)

TEN_SECONDS = timedelta(seconds=10)
# Tokens that name unknown keys cost nothing to make: so often they may cause another look into the file.
AFTER_A_MISS = timedelta(seconds=1)
PATIENCE_S = 1.0  # how long a token that names an unknown key waits for whoever is reading the file just now


@dataclass(frozen=True, repr=False)
class KeyFile:
    """A file of public keys that a verifier reads again: a JWKS document, or PEM texts one after the other.

    It is looked at where a token is verified, at most every ``check_every``, and at once where a token names a
    key that is not there (at most once a second). While it cannot be read, is no regular file, or holds
    something else, the keys that were there before stay, and a warning says why. A private key is something
    else: a verifier needs none. Replace it by renaming another file onto it. Raises ``InvalidRequestError``
    for a ``check_every`` that is no timedelta from 0.
    """

    path: str | os.PathLike[str]
    check_every: timedelta = TEN_SECONDS

    def __post_init__(self) -> None:
        if not isinstance(self.check_every, timedelta) or self.check_every < timedelta(0):
            raise InvalidRequestError(field="check_every", value=self.check_every, expected="a timedelta from 0")

    def __repr__(self) -> str:
        return f"KeyFile({shown_place(self.path)!r}, check_every={self.check_every!r})"


Keys = AuthorizationKey | KeyMaterial | Mapping[str, Any] | KeyFile | Iterable[AuthorizationKey | KeyMaterial]


@dataclass(frozen=True, eq=False, slots=True)
class KeySet:
    """The keys by their ids, and which headers genuine tokens had: a header that was proven goes with its set."""

    by_kid: Mapping[str, AuthorizationKey]
    own: AuthorizationKey | None = None
    proven: dict[str, AuthorizationKey] = field(default_factory=dict)


class KeyRing:
    """The set that is in force. Reading it takes no lock; whoever exchanges it holds one.

    Raises ``InvalidRequestError`` for no keys, for what is none, for two with one ``kid``, and for a secret
    that everybody can know, since it is another one's public key.
    """

    _file: KeyFile | None
    _content: bytes | None
    _complaint: str
    _read_at: float
    _missed_at: float | None

    def __init__(self, keys: Keys, own: AuthorizationKey | None = None) -> None:
        self._lock = Lock()
        self._set = KeySet({}, own)
        self.replace(keys)

    @property
    def own(self) -> AuthorizationKey | None:
        """The key that signs, where there is one."""
        return self._set.own

    def current(self) -> KeySet:
        """The keys of now."""
        file = self._file
        if file is not None and _is_over(file.check_every, self._read_at):
            self._read_again(self._read_at, patience=0)
        return self._set

    def after_miss(self) -> KeySet:
        """The keys of now, after another look for one that is not there."""
        missed_at = self._missed_at
        if self._file is not None and (missed_at is None or _is_over(AFTER_A_MISS, missed_at)):
            self._read_again(self._read_at, patience=PATIENCE_S)
            self._missed_at = monotonic()
        return self._set

    def replace(self, keys: Keys, own: AuthorizationKey | None = None) -> None:
        """Exchange the keys, and the own one too if there is another; what is refused changes nothing."""
        file = keys if isinstance(keys, KeyFile) else None
        given, published = ((), True) if file is not None else _given(keys)  # not in the lock: it may be any iterator
        with self._lock:
            own = own or self._set.own
            content = None if file is None else _content(file)
            accepted = given if content is None else _public_keys(content)
            self._set = _set_of(_others(accepted, own) if published else accepted, own)
            self._file, self._content, self._complaint = file, content, ""
            self._read_at, self._missed_at = monotonic(), None

    def _read_again(self, seen: float, patience: float) -> None:
        if not self._lock.acquire(timeout=patience):
            return  # somebody else is at it
        try:
            if self._file is not None and self._read_at == seen:
                self._look(self._file)
        finally:
            self._lock.release()

    def _look(self, file: KeyFile) -> None:
        try:
            content = _content(file)
            if content != self._content:
                own = self._set.own
                self._set, self._content = _set_of(_others(_public_keys(content), own), own), content
                say(log, logging.INFO, "keys read from %s: %s", shown_place(file.path), ", ".join(self._set.by_kid))
            self._complaint = ""
        except InvalidRequestError as error:
            if str(error) != self._complaint:
                say(
                    log,
                    logging.WARNING,
                    "the keys of before stay, since %s cannot be used: %s",
                    shown_place(file.path),
                    error,
                )
            self._complaint = str(error)
        finally:
            self._read_at = monotonic()


def one_key(key: AuthorizationKey | KeyMaterial) -> AuthorizationKey:
    """The key that this is, or is made of. Raises ``InvalidRequestError``."""
    return key if isinstance(key, AuthorizationKey) else AuthorizationKey.of(key)


def _is_over(pause: timedelta, since: float) -> bool:
    # A clock that was frozen by somebody's test may stand anywhere, and must not put the next look off for years.
    return not 0 <= monotonic() - since < pause.total_seconds()


def _public_keys(content: bytes) -> tuple[AuthorizationKey, ...]:
    """The keys of a file that is read to verify: whoever can read a private one there could sign."""
    keys = keys_of_file(content)
    if any(key.algorithm != "HS256" and key.signing is not None for key in keys):
        expected = "a file of public keys; the private one is for the queue alone, as AuthorizationKey.from_file(path)"
        raise InvalidRequestError(field="key", value="a file with a private key", expected=expected)
    return keys


def _content(file: KeyFile) -> bytes:
    path = plain_string(file.path) or file.path
    # Whoever opens a pipe waits for its other end.
    if isinstance(path, str | os.PathLike) and os.path.exists(path) and not os.path.isfile(path):
        raise InvalidRequestError(field="key", value=shown_place(path), expected="the path of a regular file")
    return read_key_file(path)


def _given(keys: Any) -> tuple[Sequence[AuthorizationKey], bool]:
    """The keys, and whether they are a published document's."""
    if (document := _document(keys)) is not None:
        return keys_of_document(document), True
    if isinstance(keys, Mapping):
        raise InvalidRequestError(field="keys", value="a mapping that is no JWKS", expected="keys, or a JWKS document")
    one = isinstance(keys, AuthorizationKey | KeyMaterial | os.PathLike) or not isinstance(keys, Iterable)
    return [one_key(key) for key in ([keys] if one else keys)], False


def _others(published: Iterable[AuthorizationKey], own: AuthorizationKey | None) -> Iterator[AuthorizationKey]:
    """Whoever publishes its keys finds its own among them."""
    for key in published:
        if own is None or (key.kid, key.verifying) != (own.kid, own.verifying):
            yield key


def _document(keys: Any) -> Mapping[str, Any] | None:
    """The JWKS that was given as such or as its text."""
    if isinstance(keys, str | bytes):
        text = plain_string(keys) if isinstance(keys, str) else keys
        try:
            keys = jwk.parsed(text or "")
        except ValueError:
            return None
    return keys if isinstance(keys, Mapping) and jwk.is_document(keys) else None


def _set_of(keys: Iterable[AuthorizationKey], own: AuthorizationKey | None) -> KeySet:
    by_kid = {} if own is None else {own.kid: own}
    for key in keys:
        if key.kid in by_kid:
            raise InvalidRequestError(field="kid", value=key.kid, expected="another one for each key")
        by_kid[key.kid] = key
    if not by_kid:
        raise InvalidRequestError(field="keys", value=(), expected="at least one key")
    _check_secrets(by_kid.values())
    return KeySet(by_kid, own)


def _check_secrets(keys: Iterable[AuthorizationKey]) -> None:
    """What everybody may know of one key must not be the secret of another, in whatever form it was taken for one."""
    known = {form for key in keys if key.algorithm != "HS256" for form in _public_forms(key.verifying)}
    if any(key.algorithm == "HS256" and key.verifying in known for key in keys):
        raise InvalidRequestError(field="key", value="another one's public key", expected="a secret that nobody knows")


def _public_forms(key: PublicKey) -> Iterator[bytes]:
    """Those that could pass for a secret; PEM, DER and the like are refused as such."""
    if isinstance(key, Ed25519PublicKey):
        points = [key.public_bytes_raw()]
    else:
        whole = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        points = [whole, whole[1:], whole[1:33], key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)]
    for point in points:
        yield point
        for encode in (b16encode, b64encode, urlsafe_b64encode):
            yield from (encode(point), encode(point).rstrip(b"="), encode(point).lower())

"""The permission that the wallets need where the queue decides, and who grants it.

An authorization is the queue's signed token in an envelope of readable fields. It checks nothing when
it is built: the verifier judges it, and what counts is what the token says. The types of its fields
say what the queue checks before it signs. Each operation that needs one declares its own.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar, Protocol, Self, cast

import jwt

from ..core.errors import InvalidRequestError
from ..core.refusals import InvalidAuthorizationError
from ..core.values import Identifier, Reason, checks_of, plain_string
from ..ledger.accounts import Name

MAX_TOKEN_LENGTH = 16 * 1024  # the longest fields that are valid, escaped, make one of about 15,000
# RFC 7515, section 7.1: three base64url parts, without the padding that a lenient reader would accept.
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
LAST_SECOND = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


@dataclass(frozen=True, kw_only=True)
class QueueAuthorization:
    """What every authorization has. Times are whole seconds, as in the token."""

    action: ClassVar[str]
    token: str
    queue_item_id: Identifier
    escrow_id: Identifier
    user_id: Name
    reason: Reason
    issued_at: datetime
    expires_at: datetime

    def __repr__(self) -> str:
        """Without the token: a permission must not end in a log."""
        shown = (f"{f.name}={getattr(self, f.name, None)!r}" for f in fields(self) if f.name != "token")
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def from_token(cls, token: str) -> Self:
        """The envelope of a token that came over a wire, written from what the token says.

        ``QueueAuthorization.from_token`` makes an authorization of the class that the token's ``action``
        names. Nothing is verified here: the verifier judges what comes out. Raises
        ``InvalidAuthorizationError`` whose cause is the first of: ``missing``, ``malformed`` (also a claim
        whose value no authorization has), ``claim_missing``, ``claim_mismatch`` (of another action).
        """
        text = compact_form(token)
        try:
            claims: dict[str, Any] = jwt.decode(text, options={"verify_signature": False})
        except jwt.PyJWTError as error:
            raise InvalidAuthorizationError(cause="malformed") from error
        kind = cls if hasattr(cls, "action") else _permitting(_claim(claims, "action"))
        if _claim(claims, "action") != kind.action:
            raise InvalidAuthorizationError(cause="claim_mismatch", claim="action")
        written = {name: _checked(claims, claim, name, kind) for claim, name in claimed_fields(kind).items()}
        written |= {"issued_at": claimed_time(claims, "iat"), "expires_at": claimed_time(claims, "exp")}
        return cast(Self, kind(token=text, **written))


def action_fields(kind: type[QueueAuthorization]) -> tuple[str, ...]:
    """The fields that say what is permitted: those of the authorization that its request has too."""
    return _action_fields(cast(Hashable, kind))


@cache
def _action_fields(kind: type[QueueAuthorization]) -> tuple[str, ...]:
    return tuple(name for name, _ in checks_of(kind))


def claimed_fields(kind: type[QueueAuthorization]) -> Mapping[str, str]:
    """Those fields by the claims that carry them: the queue item is what a token speaks of, its subject."""
    return _claimed_fields(cast(Hashable, kind))


@cache
def _claimed_fields(kind: type[QueueAuthorization]) -> Mapping[str, str]:
    return {"sub" if name == "queue_item_id" else name: name for name in action_fields(kind)}


def compact_form(token: object) -> str:
    """The characters of a token, if they have the form of one.

    Raises ``InvalidAuthorizationError``: ``missing`` or ``malformed``.
    """
    text = plain_string(token)
    if token is None or text == "":
        raise InvalidAuthorizationError(cause="missing")
    if text is None or len(text) > MAX_TOKEN_LENGTH or not COMPACT.fullmatch(text):
        raise InvalidAuthorizationError(cause="malformed")
    return text


def claimed_time(claims: Mapping[str, Any], claim: str) -> datetime:
    """The time that a claim gives in whole seconds. Raises ``InvalidAuthorizationError``."""
    seconds = _claim(claims, claim)
    if type(seconds) is not int or not 0 <= seconds <= LAST_SECOND:
        raise InvalidAuthorizationError(cause="malformed", claim=claim)
    return datetime.fromtimestamp(seconds, UTC)


def _claim(claims: Mapping[str, Any], claim: str) -> Any:
    if (value := claims.get(claim)) is None:
        raise InvalidAuthorizationError(cause="claim_missing", claim=claim)
    return value


def _checked(claims: Mapping[str, Any], claim: str, field: str, kind: type[QueueAuthorization]) -> Any:
    try:
        return dict(checks_of(kind))[field](field, _claim(claims, claim))
    except InvalidRequestError:
        raise InvalidAuthorizationError(cause="malformed", claim=claim) from None


def _permitting(action: object) -> type[QueueAuthorization]:
    """The class of the authorizations for an action."""
    from .operations import OPERATIONS  # each of them imports this module for its own authorization

    for operation in OPERATIONS:
        if operation.authorization is not None and operation.authorization.action == action:
            return operation.authorization
    raise InvalidAuthorizationError(cause="claim_mismatch", claim="action")


class Authorizer(Protocol):
    """Who can tell whether an authorization is genuine."""

    def verify(self, authorization: object, kind: type[QueueAuthorization], action: dict[str, Any]) -> str:
        """The authorization's id, if it is of that kind and permits exactly this action now.

        ``action`` has the values of ``action_fields(kind)``. Raises ``InvalidAuthorizationError``.
        """
        ...

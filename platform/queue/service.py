"""The queue's side: sign what has been decided, and verify that a token says exactly that."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast, overload

import jwt

from ..core.errors import InvalidRequestError
from ..core.plain import one
from ..core.refusals import InvalidAuthorizationError
from ..core.values import check_identifier, check_time, checks_of, new_id, now, plain_string
from ..wallets.authorization import (
    QueueAuthorization,
    action_fields,
    claimed_fields,
    claimed_time,
    compact_form,
)
from ..wallets.operation import Request
from ..wallets.operations import BY_REQUEST
from ..wallets.operations.partial_settle import EscrowPartialSettleRequest, QueuePartialSettlementAuthorization
from ..wallets.operations.refund import EscrowRefundRequest, QueueRefundAuthorization
from ..wallets.operations.settle import EscrowSettleRequest, QueueSettlementAuthorization
from .keyring import KeyRing, Keys, KeySet, one_key
from .models import AuthorizationKey, KeyMaterial

A = TypeVar("A", bound=QueueAuthorization)

ISSUER = "performance-queue"
AUDIENCE = "points-platform-wallets"
FIVE_SECONDS = timedelta(seconds=5)
FIVE_MINUTES = timedelta(minutes=5)
LONGEST = timedelta(days=365)
TIMES = ("iat", "nbf", "exp")
MAX_HEADERS = 100
REGISTERED = ("iss", "aud", "sub", "jti", *TIMES)

TAKE_ENVELOPE = "a text is no authorization yet: QueueAuthorization.from_token(text) makes one of a token"

# What PyJWT raises, the more special first.
CAUSES: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "expired",
    jwt.ImmatureSignatureError: "not_yet_valid",
    jwt.InvalidIssuerError: "issuer",
    jwt.InvalidAudienceError: "audience",
    jwt.MissingRequiredClaimError: "claim_missing",
    jwt.InvalidAlgorithmError: "algorithm",
    jwt.InvalidSignatureError: "signature",
    jwt.PyJWTError: "malformed",
}


class AuthorizationVerifier:
    """Verifies authorizations with any of several keys, so that an old and a new one are valid side by side.

    ``keys`` are one key, several, a JWKS document (a mapping or its text) or a ``KeyFile`` that is read again.
    Where the queue signs with EdDSA or ES256, public keys are enough. ``leeway`` is how far the two clocks
    may differ, 5 seconds unless told otherwise: a token is valid that much earlier and longer. Raises
    ``InvalidRequestError`` for keys that are too short, of another kind, or share a ``kid``, and for a text
    that names the place of a key.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        leeway: timedelta = FIVE_SECONDS,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
    ) -> None:
        self._prepare(KeyRing(keys), leeway, issuer, audience)

    def replace_keys(self, keys: Keys) -> None:
        """Accept these keys and no others from now on, also while other threads verify.

        Raises ``InvalidRequestError`` as the constructor does, and then the keys stay as they were.
        """
        self._ring.replace(keys)

    def verify(self, authorization: object, kind: type[QueueAuthorization], action: Mapping[str, Any]) -> str:
        """The authorization's id (the token's ``jti``), if it permits exactly this action now.

        Raises ``InvalidAuthorizationError`` whose cause is the first of: ``missing``, ``claim_mismatch``
        (an authorization for another action), ``malformed``, ``unknown_key``, ``algorithm``,
        ``signature``, ``claim_missing``, ``not_yet_valid``, ``expired``, ``issuer``, ``audience``,
        ``claim_mismatch``, ``envelope_mismatch``.
        """
        if authorization is None:
            raise InvalidAuthorizationError(cause="missing")
        if type(authorization) is not kind:
            advice = TAKE_ENVELOPE if isinstance(authorization, str | bytes) else None
            raise InvalidAuthorizationError(cause="claim_mismatch", claim="action", advice=advice)
        claims = self._claims(getattr(authorization, "token", None), kind)
        times = _checked_forms(claims)
        _check_action(claims, _as_claims(kind, action), "claim_mismatch")
        _check_envelope(claims, authorization, times)
        authorization_id: str = claims["jti"]
        return authorization_id

    def _claims(self, token: object, kind: type[QueueAuthorization]) -> dict[str, Any]:
        """What the token says, if one of our keys has signed it and it is valid now."""
        text = compact_form(token)
        header = text.partition(".")[0]
        try:
            keys, key = self._key_of(text, header)
            claims: dict[str, Any] = jwt.decode(
                text,
                key.verifier,
                algorithms=[key.algorithm],
                leeway=self._leeway,
                issuer=self._issuer,
                audience=self._audience,
                options={"require": [*REGISTERED, "action", *claimed_fields(kind)], "strict_aud": True},
            )
        except jwt.PyJWTError as error:
            raise _refused(error) from error
        if len(keys.proven) < MAX_HEADERS:
            keys.proven[header] = key
        return claims

    def _key_of(self, text: str, header: str) -> tuple[KeySet, AuthorizationKey]:
        """The key that the token names, with the set that it is in."""
        keys = self._ring.current()
        # A signer begins each token with the same header: one that a genuine token had need not be parsed again.
        if (proven := keys.proven.get(header)) is not None:
            return keys, proven
        kid = jwt.get_unverified_header(text).get("kid", "")
        key = keys.by_kid.get(kid)
        if key is None:
            keys = self._ring.after_miss()
            key = keys.by_kid.get(kid)
        if key is None:
            raise _unknown(kid)
        return keys, key

    def _prepare(self, ring: KeyRing, leeway: timedelta, issuer: str, audience: str) -> None:
        if not isinstance(leeway, timedelta) or leeway < timedelta(0):
            raise InvalidRequestError(field="leeway", value=leeway, expected="a timedelta from 0")
        self._ring = ring
        self._leeway = leeway
        self._issuer = check_identifier("issuer", issuer)
        self._audience = check_identifier("audience", audience)


class QueueAuthorizer(AuthorizationVerifier):
    """Signs authorizations with one key, and verifies them with it and those of ``also_accept``.

    ``key`` is a secret of at least 32 bytes (HS256), or an Ed25519 (EdDSA) or P-256 (ES256) private key;
    ``also_accept`` is what a verifier takes, and a document or file may list the own key too.
    Raises ``InvalidRequestError`` for any other, and for a public key, which cannot sign.
    """

    def __init__(
        self,
        key: AuthorizationKey | KeyMaterial,
        also_accept: Keys = (),
        *,
        leeway: timedelta = FIVE_SECONDS,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
    ) -> None:
        self._prepare(KeyRing(also_accept, _signer(key)), leeway, issuer, audience)

    def replace_keys(self, keys: Keys) -> None:
        """Accept these keys beside the own one, which goes on signing; ``replace_key`` is for that.

        Raises ``InvalidRequestError`` as the constructor does, and then the keys stay as they were.
        """
        super().replace_keys(keys)

    def replace_key(self, key: AuthorizationKey | KeyMaterial, also_accept: Keys = ()) -> None:
        """Sign with this key from now on, and accept it and those of ``also_accept``, the one of before perhaps.

        Raises ``InvalidRequestError`` as the constructor does, and then the keys stay as they were.
        """
        self._ring.replace(also_accept, _signer(key))

    def authorize_settlement(
        self,
        *,
        queue_item_id: str,
        escrow_id: str,
        user_id: str,
        model_id: str,
        amount: int,
        reason: str,
        expires_in: timedelta = FIVE_MINUTES,
    ) -> QueueSettlementAuthorization:
        """Permit giving all of a hold to the model. Raises ``InvalidRequestError``."""
        return self._sign(
            QueueSettlementAuthorization,
            expires_in,
            queue_item_id=queue_item_id,
            escrow_id=escrow_id,
            user_id=user_id,
            model_id=model_id,
            amount=amount,
            reason=reason,
        )

    def authorize_refund(
        self,
        *,
        queue_item_id: str,
        escrow_id: str,
        user_id: str,
        amount: int,
        reason: str,
        expires_in: timedelta = FIVE_MINUTES,
    ) -> QueueRefundAuthorization:
        """Permit giving all of a hold back to its user. Raises ``InvalidRequestError``."""
        return self._sign(
            QueueRefundAuthorization,
            expires_in,
            queue_item_id=queue_item_id,
            escrow_id=escrow_id,
            user_id=user_id,
            amount=amount,
            reason=reason,
        )

    def authorize_partial_settlement(
        self,
        *,
        queue_item_id: str,
        escrow_id: str,
        user_id: str,
        model_id: str,
        refund_amount: int,
        settle_amount: int,
        reason: str,
        expires_in: timedelta = FIVE_MINUTES,
    ) -> QueuePartialSettlementAuthorization:
        """Permit one split of a hold. Raises ``InvalidRequestError``."""
        return self._sign(
            QueuePartialSettlementAuthorization,
            expires_in,
            queue_item_id=queue_item_id,
            escrow_id=escrow_id,
            user_id=user_id,
            model_id=model_id,
            refund_amount=refund_amount,
            settle_amount=settle_amount,
            reason=reason,
        )

    @overload
    def authorize(
        self, request: EscrowSettleRequest, *, expires_in: timedelta = ...
    ) -> QueueSettlementAuthorization: ...
    @overload
    def authorize(self, request: EscrowRefundRequest, *, expires_in: timedelta = ...) -> QueueRefundAuthorization: ...
    @overload
    def authorize(
        self, request: EscrowPartialSettleRequest, *, expires_in: timedelta = ...
    ) -> QueuePartialSettlementAuthorization: ...
    def authorize(self, request: Request, *, expires_in: timedelta = FIVE_MINUTES) -> QueueAuthorization:
        """Permit exactly what a request asks for, where the queue makes the request itself.

        Raises ``InvalidRequestError`` for what is no request that the queue decides on.
        """
        operation = BY_REQUEST.get(type(request))
        if operation is None or operation.authorization is None:
            given = one(type(request))
            raise InvalidRequestError(field="request", value=given, expected="one that the queue decides on")
        kind = operation.authorization
        return self._sign(kind, expires_in, **{name: getattr(request, name) for name in action_fields(kind)})

    def _sign(self, kind: type[A], expires_in: timedelta, **given: Any) -> A:
        action = {name: check(name, given[name]) for name, check in checks_of(kind)}
        if not isinstance(expires_in, timedelta) or not timedelta(seconds=1) <= expires_in <= LONGEST:
            raise InvalidRequestError(
                field="expires_in", value=expires_in, expected="a timedelta of 1 second to 365 days"
            )
        issued = int(now().timestamp())
        expires = issued + int(expires_in.total_seconds())
        claims = {
            **_as_claims(kind, action),
            "iss": self._issuer,
            "aud": self._audience,
            "jti": new_id(),
            "iat": issued,
            "nbf": issued,
            "exp": expires,
        }
        key = cast(AuthorizationKey, self._ring.own)
        token = jwt.encode(claims, key.signing, algorithm=key.algorithm, headers={"kid": key.kid})
        return kind(token=token, issued_at=_time(issued), expires_at=_time(expires), **action)


def _signer(key: AuthorizationKey | KeyMaterial) -> AuthorizationKey:
    signer = one_key(key)
    if signer.signing is None:
        raise InvalidRequestError(field="key", value="a public key", expected="a key that can sign")
    return signer


def _as_claims(kind: type[QueueAuthorization], action: Mapping[str, Any]) -> dict[str, Any]:
    """The action as a token has it: the queue item is what it speaks of, the subject."""
    return {"action": kind.action, **{claim: action[name] for claim, name in claimed_fields(kind).items()}}


def _checked_forms(claims: Mapping[str, Any]) -> dict[str, datetime]:
    """The forms that PyJWT is lenient about: whole seconds, and an id that can be recorded. Returns the times."""
    times = {name: claimed_time(claims, name) for name in TIMES}
    try:
        check_identifier("jti", claims["jti"])
    except InvalidRequestError:
        raise InvalidAuthorizationError(cause="malformed", claim="jti") from None
    return times


def _check_action(claims: Mapping[str, Any], expected: Mapping[str, Any], cause: str) -> None:
    for name, given in expected.items():
        claim, value = claims[name], plain_string(given) if isinstance(given, str) else given
        # By type too: True equals 1, and 1.0 does, but neither is an amount.
        if type(claim) is not type(value) or claim != value:
            raise InvalidAuthorizationError(cause=cause, claim=name)


def _check_envelope(
    claims: Mapping[str, Any], authorization: QueueAuthorization, times: Mapping[str, datetime]
) -> None:
    """What is written on the envelope must be what is in it."""
    written = {name: getattr(authorization, name, None) for name in action_fields(type(authorization))}
    _check_action(claims, _as_claims(type(authorization), written), "envelope_mismatch")
    for claim, name in (("iat", "issued_at"), ("exp", "expires_at")):
        if not _is_at(getattr(authorization, name, None), times[claim]):
            raise InvalidAuthorizationError(cause="envelope_mismatch", claim=claim)


def _is_at(written: object, instant: datetime) -> bool:
    try:
        return bool(check_time("written", written) == instant)
    except InvalidRequestError:
        return False


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _unknown(kid: str) -> InvalidAuthorizationError:
    """An error that names the kid, if it is one that a key could have."""
    try:
        return InvalidAuthorizationError(cause="unknown_key", kid=check_identifier("kid", kid))
    except InvalidRequestError:
        return InvalidAuthorizationError(cause="unknown_key")


def _refused(error: jwt.PyJWTError) -> InvalidAuthorizationError:
    cause = next(cause for kind, cause in CAUSES.items() if isinstance(error, kind))
    claim = getattr(error, "claim", None)
    return InvalidAuthorizationError(cause=cause, claim=claim) if claim else InvalidAuthorizationError(cause=cause)

"""The permission that the wallets need where the queue decides, and who grants it.

An authorization is the queue's signed token in an envelope of readable fields. It checks nothing when
it is built: the verifier judges it, and what counts is what the token says. The types of its fields
say what the queue checks before it signs. Each operation that needs one declares its own.
"""

from collections.abc import Hashable
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Protocol, cast

from ..core.values import Identifier, Reason, checks_of


@dataclass(frozen=True, kw_only=True)
class QueueAuthorization:
    """What every authorization has. Times are whole seconds, as in the token."""

    action: ClassVar[str]
    token: str
    queue_item_id: Identifier
    escrow_id: Identifier
    user_id: Identifier
    reason: Reason
    issued_at: datetime
    expires_at: datetime

    def __repr__(self) -> str:
        """Without the token: a permission must not end in a log."""
        shown = (f"{f.name}={getattr(self, f.name, None)!r}" for f in fields(self) if f.name != "token")
        return f"{type(self).__name__}({', '.join(shown)})"


def action_fields(kind: type[QueueAuthorization]) -> tuple[str, ...]:
    """The fields that say what is permitted: those of the authorization that its request has too."""
    return _action_fields(cast(Hashable, kind))


@cache
def _action_fields(kind: type[QueueAuthorization]) -> tuple[str, ...]:
    return tuple(name for name, _ in checks_of(kind))


class Authorizer(Protocol):
    """Who can tell whether an authorization is genuine."""

    def verify(self, authorization: object, kind: type[QueueAuthorization], action: dict[str, Any]) -> str:
        """The authorization's id, if it is of that kind and permits exactly this action now.

        ``action`` has the values of ``action_fields(kind)``. Raises ``InvalidAuthorizationError``.
        """
        ...

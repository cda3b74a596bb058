"""What every event is: what happened, as an immutable value. Amounts and balances are points in minor units.

Each operation declares its own event; which types there are stands in the ledger's chart.
"""

from dataclasses import dataclass
from datetime import datetime

from ..core.values import HasMetadata
from ..ledger.accounts import CHART

SCHEMA_VERSION = 1

EVENT_TYPES = tuple(law.announced for law in CHART.values())


@dataclass(frozen=True, kw_only=True)
class WalletEvent(HasMetadata):
    """What every event has. ``event_id`` is the id of the transaction that it announces."""

    event_id: str
    event_type: str
    occurred_at: datetime
    transaction_id: str
    idempotency_key: str
    request_id: str
    currency: str
    reason: str
    metadata_json: str | None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class UserEvent(WalletEvent):
    """What every event of a user's operation has."""

    user_id: str

"""What one transaction of the database has read, and what it is going to write.

Operations are carried out on it one after the other, in memory: each decides on what the ones before it
have left. (Unit of Work: Fowler, Patterns of Enterprise Application Architecture, 2002.)
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from ..ledger.accounts import ISSUER, WALLET_OF, Bucket, model_owner, net
from ..ledger.models import LedgerTransaction, TransactionDraft, WalletState
from ..ledger.posting import post
from .models import EscrowItem
from .rules import Decision, State


class Keys(NamedTuple):
    """What identifies the rows of an operation. Without a currency it is the escrow item's."""

    owner_id: str
    operation: str
    idempotency_key: str
    escrow_id: str | None
    user_id: str
    model_id: str | None
    currency: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        """Whose key, for which operation."""
        return self[:3]


@dataclass(slots=True)
class Wallet:
    """A wallet as the operations so far have left it. ``seen`` is the version that was read, 0 if there was none."""

    balances: dict[Bucket, int]
    seen: int = 0
    updated_at: datetime | None = None
    created_at: datetime | None = None
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.seen

    def change(self, gains: dict[Bucket, int], at: datetime) -> WalletState:
        """Add the gains, and count it."""
        for bucket, gain in gains.items():
            self.balances[bucket] += gain
        self.version += 1
        # Never earlier than the change before, whatever the clocks do: history by time relies on it.
        self.updated_at = at if self.updated_at is None else max(at, self.updated_at)
        self.created_at = self.created_at or self.updated_at
        return WalletState(balances=self.balances.copy(), version=self.version, posted_at=self.updated_at)


@dataclass
class UnitOfWork:
    """Wallets by owner and currency, escrow items by id and user, and what the idempotency keys stand for."""

    wallets: dict[tuple[str, str], Wallet] = field(default_factory=dict)
    items: dict[tuple[str, str], EscrowItem] = field(default_factory=dict)
    recorded: dict[tuple[str, str, str], LedgerTransaction] = field(default_factory=dict)
    decided: list[EscrowItem] = field(default_factory=list)
    posted: list[LedgerTransaction] = field(default_factory=list)

    def state(self, keys: Keys) -> State:
        """What the operation finds."""
        item = self.items.get((keys.escrow_id, keys.user_id)) if keys.escrow_id else None
        currency = item.currency if item else keys.currency or ""
        user = self.wallets.get((keys.owner_id, currency))
        model = self.wallets.get((model_owner(keys.model_id), currency)) if keys.model_id else None
        return State(
            currency=currency,
            available=user.balances[Bucket.AVAILABLE] if user else 0,
            escrow=user.balances[Bucket.ESCROW] if user else 0,
            earned=model.balances[Bucket.EARNED] if model else 0,
            item=item,
        )

    def carry_out(self, decision: Decision) -> LedgerTransaction:
        """Change the wallets as decided, and post the transaction."""
        draft, item = decision.transaction, decision.item
        if item is not None:
            self.items[item.escrow_id, item.user_id] = item
            self.decided.append(item)
        gains: dict[str, dict[Bucket, int]] = {}
        for (owner, bucket), amount in net(draft.movements).items():
            if owner != ISSUER.account_id:
                gains.setdefault(owner, dict.fromkeys(WALLET_OF[bucket], 0))[bucket] = amount
        changed = {owner: self._change(owner, gain, draft) for owner, gain in gains.items()}
        transaction = post(draft, changed)
        self.posted.append(transaction)
        self.recorded[draft.owner_id, draft.operation, draft.idempotency_key] = transaction
        return transaction

    def _change(self, owner: str, gain: dict[Bucket, int], draft: TransactionDraft) -> WalletState:
        wallet = self.wallets.get((owner, draft.currency))
        if wallet is None:
            wallet = self.wallets[owner, draft.currency] = Wallet(dict.fromkeys(gain, 0))
        return wallet.change(gain, draft.occurred_at)

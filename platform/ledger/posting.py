"""From what was decided to what is recorded: a draft's moves and the wallets they changed make the entries."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from operator import attrgetter

from ..core.values import filled
from .accounts import Bucket, is_legal
from .models import LedgerEntry, LedgerTransaction, TransactionDraft, WalletState

_ACCOUNT = attrgetter("account_id", "bucket")


def post(
    draft: TransactionDraft, wallets: Mapping[str, WalletState], *, at: datetime, **told: str
) -> LedgerTransaction:
    """The transaction that the draft becomes at that time, when these are the wallets after it, by owner.

    ``told`` are fields that only the writing has told. The entries derive from the moves, so they sum to zero.
    Raises ``ValueError`` for moves that the operation must not make, and for a wallet that is not given.
    """
    if not is_legal(draft.operation, draft.owner_id, draft.model_id, draft.moves):
        raise ValueError(f"{draft.operation} must not make the moves {draft.moves}")
    entries = []
    for owner, gains in draft.changes.wallets.items():
        wallet = wallets.get(owner)
        if wallet is None:
            raise ValueError(f"{draft.operation} was posted without the wallet of {owner}")
        for bucket, amount in gains.items():
            after = wallet.balances[bucket]
            entries.append(_entry(owner, bucket, amount, after - amount, after, wallet.version, wallet.posted_at))
    for account, amount in draft.changes.platform.items():
        entries.append(_entry(*account, amount, None, None, None, at))
    values = {**vars(draft), **told, "occurred_at": at, "entries": in_order(entries)}
    del values["moves"], values["changes"]
    return filled(LedgerTransaction, values)


def in_order(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """The one order of a transaction's entries."""
    return tuple(sorted(entries, key=_ACCOUNT))


def _entry(
    account_id: str,
    bucket: Bucket,
    amount: int,
    before: int | None,
    after: int | None,
    version: int | None,
    posted_at: datetime,
) -> LedgerEntry:
    values = {
        "account_id": account_id,
        "bucket": bucket.value,
        "amount": amount,
        "balance_before": before,
        "balance_after": after,
        "wallet_version": version,
        "posted_at": posted_at,
    }
    return filled(LedgerEntry, values)

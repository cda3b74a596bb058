"""From what was decided to what is recorded: a draft's moves and the wallets they changed make the entries."""

from collections.abc import Iterable, Mapping
from operator import attrgetter

from .accounts import Bucket, is_legal
from .models import LedgerEntry, LedgerTransaction, TransactionDraft, WalletState

_ACCOUNT = attrgetter("account_id", "bucket")


def post(draft: TransactionDraft, wallets: Mapping[str, WalletState], **told: str) -> LedgerTransaction:
    """The transaction that the draft becomes when these are the wallets after it, by owner.

    ``told`` are fields that only the writing has told. The entries derive from the moves, so they sum to zero.
    Raises ``ValueError`` for moves that the operation must not make, and for a wallet that is not given.
    """
    if not is_legal(draft.operation, draft.owner_id, draft.model_id, draft.moves):
        raise ValueError(f"{draft.operation} must not make the moves {draft.moves}")
    if missing := draft.changes.wallets.keys() - wallets.keys():
        raise ValueError(f"{draft.operation} was posted without the wallets of {missing}")
    header = vars(draft) | told
    del header["moves"], header["changes"]
    entries = [
        _entry(owner, bucket, amount, wallets[owner])
        for owner, gains in draft.changes.wallets.items()
        for bucket, amount in gains.items()
    ]
    for (account_id, bucket), amount in draft.changes.platform.items():
        entries.append(
            LedgerEntry(
                account_id=account_id,
                bucket=bucket.value,
                amount=amount,
                balance_before=None,
                balance_after=None,
                wallet_version=None,
                posted_at=draft.occurred_at,
            )
        )
    return LedgerTransaction(**header, entries=in_order(entries))


def in_order(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """The one order of a transaction's entries."""
    return tuple(sorted(entries, key=_ACCOUNT))


def _entry(owner: str, bucket: Bucket, amount: int, wallet: WalletState) -> LedgerEntry:
    after = wallet.balances[bucket]
    return LedgerEntry(
        account_id=owner,
        bucket=bucket.value,
        amount=amount,
        balance_before=after - amount,
        balance_after=after,
        wallet_version=wallet.version,
        posted_at=wallet.posted_at,
    )

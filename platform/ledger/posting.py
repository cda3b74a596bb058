"""From what was decided to what is recorded: a draft's moves and the wallets they changed make the entries."""

from collections.abc import Iterable, Mapping
from operator import attrgetter

from .accounts import Account, has_wallet, is_legal, net
from .models import LedgerEntry, LedgerTransaction, TransactionDraft, WalletState

_ACCOUNT = attrgetter("account_id", "bucket")


def post(draft: TransactionDraft, wallets: Mapping[str, WalletState]) -> LedgerTransaction:
    """The transaction that the draft becomes when these are the wallets after it, by owner.

    The entries derive from the moves, so they sum to zero. Raises ``ValueError`` for moves that the operation must
    not make, and for a wallet that is not given.
    """
    if not is_legal(draft.operation, draft.owner_id, draft.model_id, draft.moves):
        raise ValueError(f"{draft.operation} must not make the moves {draft.moves}")
    changes = net(draft.moves)
    if missing := [a for a in changes if a.account_id not in wallets and has_wallet(a.account_id)]:
        raise ValueError(f"{draft.operation} was posted without the wallets of {missing}")
    header = vars(draft).copy()
    del header["moves"]
    entries = (_entry(a, amount, wallets.get(a.account_id), draft) for a, amount in changes.items())
    return LedgerTransaction(**header, entries=in_order(entries))


def in_order(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """The one order of a transaction's entries."""
    return tuple(sorted(entries, key=_ACCOUNT))


def _entry(account: Account, amount: int, wallet: WalletState | None, draft: TransactionDraft) -> LedgerEntry:
    after = wallet.balances[account.bucket] if wallet else None
    return LedgerEntry(
        account_id=account.account_id,
        bucket=account.bucket.value,
        amount=amount,
        balance_before=None if after is None else after - amount,
        balance_after=after,
        wallet_version=wallet.version if wallet else None,
        posted_at=wallet.posted_at if wallet else draft.occurred_at,
    )

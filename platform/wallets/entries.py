"""What the entries of a transaction tell, by the names that requests, responses and events have for it."""

from typing import Any

from ..ledger.accounts import Account, Bucket, earned
from ..ledger.models import LedgerTransaction

Facts = dict[str, Any]


def of_available(transaction: LedgerTransaction) -> Facts:
    """How much the owner's available points have changed, and what they were and are."""
    available = transaction.entry(Account(transaction.owner_id, Bucket.AVAILABLE))
    return {
        "amount": abs(available.amount),
        "previous_balance": available.balance_before,
        "new_available_balance": available.balance_after,
    }


def of_refunded(transaction: LedgerTransaction) -> Facts:
    """What of a hold went back to its user."""
    available = transaction.entry(Account(transaction.owner_id, Bucket.AVAILABLE))
    return {
        **dict.fromkeys(("refund_amount", "refunded_amount"), available.amount),
        "user_available_balance": available.balance_after,
    }


def of_earned(transaction: LedgerTransaction) -> Facts:
    """What of a hold went to the model that the transaction names."""
    model = transaction.entry(earned(transaction.model_id or ""))
    return {
        **dict.fromkeys(("settle_amount", "settled_amount"), model.amount),
        "model_earned_balance": model.balance_after,
    }

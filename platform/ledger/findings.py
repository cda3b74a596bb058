"""What verifying can find: every kind of finding, and which of them an append-only ledger keeps for ever."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

# What was written into ledger or log and is never written anew. An operator who knows it accepts it, see ``known``.
Lasting = Literal[
    "operation_unknown",
    "transaction_without_entries",
    "entry_without_transaction",
    "transaction_unbalanced",
    "illegal_movement",
    "authorization",
    "transaction_escrow",
    "key_used_twice",
    "escrow_begun_twice",
    "escrow_ended_twice",
    "deposit_claimed_twice",
    "balance_gap",
    "balance_sum",
    "balance_limit",
    "entry_incomplete",
    "version_gap",
    "version_used_twice",
    "posted_into_the_past",
    "posted_apart",
    "from_the_future",
    "log_order",
    "log_gap",
    "sealed_transaction_missing",
    "seal_broken",
    "escrow_balance",
]
# What goes away: by a repair from the ledger, with another head, or when its cause does.
Passing = Literal[
    "user_wallet_differs",
    "user_wallet_missing",
    "user_wallet_unexplained",
    "model_wallet_differs",
    "model_wallet_missing",
    "model_wallet_unexplained",
    "escrow_item_differs",
    "escrow_item_missing",
    "escrow_item_unexplained",
    "deposit_claim_differs",
    "deposit_claim_missing",
    "deposit_claim_unexplained",
    "trigger_missing",
    "constraint_missing",
    "index_missing",
    "log_cut",
    "log_rewritten",
    "unreadable",
    "more_findings",
]
Kind = Lasting | Passing
LASTING = frozenset(get_args(Lasting))
KINDS = (*get_args(Lasting), *get_args(Passing))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it must be: its kind, the ids that name it, what was expected and what is there."""

    kind: Kind
    ids: dict[str, Any]
    expected: Any
    found: Any

"""What the torture knows of each operation: by hand, from the documents, with none of the module's declarations.

Whatever else here speaks of operations asks this table; ``test_operations`` compares its names with what is declared.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from points_platform.wallets import (
    DepositRequest,
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    OpenWalletRequest,
    SpendRequest,
    TransferRequest,
    UserCreditRequest,
)

from .journal import Line

Moves = dict[tuple[str, str], int]


@dataclass(frozen=True, kw_only=True)
class Known:
    """How an operation is sent, and what must become of it.

    ``refusals`` are those that a request without a flaw may get; ``moves`` what a request moves, by account and bucket;
    ``details`` the names of what the transaction records beside header and entries; ``status`` what it makes of a hold.
    """

    request: type[Any]
    method: str
    event: str
    refusals: frozenset[str]
    moves: Callable[[Line], Moves]
    details: tuple[str, ...] = ()
    batches: bool = True
    status: str | None = None


ISSUED, REVENUE = ("platform:issuer", "issued"), ("platform:revenue", "revenue")
OF_HOLDS = frozenset({"escrow_not_found", "escrow_already_processed"})


def _user(request: Line, bucket: str = "available", name: str = "user_id") -> tuple[str, str]:
    return f"user:{request[name]}", bucket


def _earned(request: Line) -> tuple[str, str]:
    return f"model:{request['model_id']}", "earned"


OPERATIONS = {
    "credit": Known(
        request=UserCreditRequest,
        method="credit_user",
        event="wallet.credited",
        refusals=frozenset({"balance_limit"}),
        moves=lambda request: {ISSUED: -request["amount"], _user(request): request["amount"]},
    ),
    "hold": Known(
        request=EscrowHoldRequest,
        method="hold_in_escrow",
        event="wallet.escrow_held",
        refusals=frozenset({"insufficient_balance"}),
        moves=lambda request: {_user(request): -request["amount"], _user(request, "escrow"): request["amount"]},
    ),
    "settle": Known(
        request=EscrowSettleRequest,
        method="settle_escrow",
        event="wallet.escrow_settled",
        refusals=OF_HOLDS | {"balance_limit"},
        moves=lambda request: {_user(request, "escrow"): -request["amount"], _earned(request): request["amount"]},
        status="settled",
    ),
    "refund": Known(
        request=EscrowRefundRequest,
        method="refund_escrow",
        event="wallet.escrow_refunded",
        refusals=OF_HOLDS,
        moves=lambda request: {_user(request, "escrow"): -request["amount"], _user(request): request["amount"]},
        status="refunded",
    ),
    "partial_settle": Known(
        request=EscrowPartialSettleRequest,
        method="partial_settle_escrow",
        event="wallet.escrow_partially_settled",
        refusals=OF_HOLDS | {"balance_limit"},
        moves=lambda request: {
            _user(request, "escrow"): -request["refund_amount"] - request["settle_amount"],
            _user(request): request["refund_amount"],
            _earned(request): request["settle_amount"],
        },
        batches=False,
        status="partially_settled",
    ),
    "spend": Known(
        request=SpendRequest,
        method="spend_points",
        event="wallet.spent",
        refusals=frozenset({"insufficient_balance"}),
        moves=lambda request: {_user(request): -request["amount"], REVENUE: request["amount"]},
        details=("order_id",),
    ),
    "transfer": Known(
        request=TransferRequest,
        method="transfer_points",
        event="wallet.transferred",
        refusals=frozenset({"insufficient_balance", "balance_limit"}),
        moves=lambda request: {
            _user(request): -request["amount"],
            _user(request, name="recipient_id"): request["amount"],
        },
    ),
    "open": Known(
        request=OpenWalletRequest,
        method="open_wallet",
        event="wallet.opened",
        refusals=frozenset(),
        moves=lambda request: {
            (request["owner"], "available" if request["owner"].startswith("user:") else "earned"): 0
        },
        batches=False,
    ),
    "deposit": Known(
        request=DepositRequest,
        method="deposit_points",
        event="wallet.deposited",
        refusals=frozenset({"deposit_conflict", "balance_limit"}),
        moves=lambda request: {ISSUED: -request["amount"], _user(request): request["amount"]},
        details=("reference", "source"),
    ),
}
ENDS = [name for name, known in OPERATIONS.items() if known.status]
BEGINS = [name for name, known in OPERATIONS.items() if not known.status]
BATCHES = [name for name, known in OPERATIONS.items() if known.batches]


def request_of(operation: str, given: Line) -> Any:
    """The request with those of the given fields that it has."""
    kind = OPERATIONS[operation].request
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})


def owner_of(request: Line) -> str:
    """Whose operation it is: whose key, and whose transaction."""
    return str(request.get("owner") or f"user:{request['user_id']}")


def claim_of(operation: str, request: Line) -> tuple[str, str] | None:
    """What a deposit claims, and nobody else may."""
    return (request["source"], request["reference"]) if operation == "deposit" else None

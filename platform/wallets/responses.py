"""What callers get: the balances right after their operation, in minor units.

``replayed`` says that the operation had been carried out before under the same key. The answer is
the one of then, so ``replayed`` takes no part in comparing two responses.
"""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Response:
    transaction_id: str
    timestamp: datetime
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class UserCreditResponse(Response):
    previous_balance: int
    new_available_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowHoldResponse(Response):
    """``escrow_balance`` is the user's whole escrow in this currency."""

    escrow_id: str
    previous_balance: int
    new_available_balance: int
    escrow_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowSettleResponse(Response):
    settled_amount: int
    model_earned_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowRefundResponse(Response):
    refunded_amount: int
    user_available_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowPartialSettleResponse(Response):
    refunded_amount: int
    settled_amount: int
    user_available_balance: int
    model_earned_balance: int

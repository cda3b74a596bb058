"""What callers get: the balances right after their operation, in minor units.

``replayed`` says that the operation had been carried out before under the same key. The answer is
the one of then, so ``replayed`` takes no part in comparing two responses.
"""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Response:
    """What every response has: the transaction's id and its time."""

    transaction_id: str
    timestamp: datetime
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class UserCreditResponse(Response):
    """The user's available points before and after."""

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
    """What went to the model, and what it has earned in all."""

    settled_amount: int
    model_earned_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowRefundResponse(Response):
    """What went back to the user, and what is available now."""

    refunded_amount: int
    user_available_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowPartialSettleResponse(Response):
    """What went to either side, and the balances of both."""

    refunded_amount: int
    settled_amount: int
    user_available_balance: int
    model_earned_balance: int

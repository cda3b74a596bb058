"""The wallets: what a platform's redemption flows, queue and dashboards call."""

from ..core import errors as _errors
from ..core import refusals as _refusals
from ..core.database import Database
from ..core.errors import *
from ..core.refusals import *
from ..core.values import Page, every
from .authorization import Authorizer, QueueAuthorization
from .books import Books, books
from .config import WalletConfig
from .facts import event_of, request_of, response_of
from .models import EscrowItem, EscrowStatus, ModelBalance, UserBalance
from .operation import Response, TransactionReason
from .operations.credit import UserCreditRequest, UserCreditResponse, WalletCredited
from .operations.deposit import DepositRequest, DepositResponse, WalletDeposited
from .operations.hold import EscrowHeld, EscrowHoldRequest, EscrowHoldResponse
from .operations.open import OpenWalletRequest, OpenWalletResponse, WalletOpened
from .operations.partial_settle import (
    EscrowPartiallySettled,
    EscrowPartialSettleRequest,
    EscrowPartialSettleResponse,
    QueuePartialSettlementAuthorization,
)
from .operations.refund import EscrowRefunded, EscrowRefundRequest, EscrowRefundResponse, QueueRefundAuthorization
from .operations.settle import EscrowSettled, EscrowSettleRequest, EscrowSettleResponse, QueueSettlementAuthorization
from .operations.spend import SpendRequest, SpendResponse, WalletSpent
from .operations.transfer import TransferRequest, TransferResponse, WalletTransferred
from .service import WalletService

__all__ = [
    "Authorizer",
    "Books",
    "Database",
    "DepositRequest",
    "DepositResponse",
    "EscrowHeld",
    "EscrowHoldRequest",
    "EscrowHoldResponse",
    "EscrowItem",
    "EscrowPartialSettleRequest",
    "EscrowPartialSettleResponse",
    "EscrowPartiallySettled",
    "EscrowRefundRequest",
    "EscrowRefundResponse",
    "EscrowRefunded",
    "EscrowSettleRequest",
    "EscrowSettleResponse",
    "EscrowSettled",
    "EscrowStatus",
    "ModelBalance",
    "OpenWalletRequest",
    "OpenWalletResponse",
    "Page",
    "QueueAuthorization",
    "QueuePartialSettlementAuthorization",
    "QueueRefundAuthorization",
    "QueueSettlementAuthorization",
    "Response",
    "SpendRequest",
    "SpendResponse",
    "TransactionReason",
    "TransferRequest",
    "TransferResponse",
    "UserBalance",
    "UserCreditRequest",
    "UserCreditResponse",
    "WalletConfig",
    "WalletCredited",
    "WalletDeposited",
    "WalletOpened",
    "WalletService",
    "WalletSpent",
    "WalletTransferred",
    "books",
    "event_of",
    "every",
    "request_of",
    "response_of",
]
__all__ += _errors.__all__
__all__ += _refusals.__all__

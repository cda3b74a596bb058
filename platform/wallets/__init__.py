"""The wallets: what a platform's redemption flows, queue and dashboards call."""

from .authorization import (
    Authorizer,
    QueueAuthorization,
    QueuePartialSettlementAuthorization,
    QueueRefundAuthorization,
    QueueSettlementAuthorization,
)
from .books import Books, books
from .config import WalletConfig
from .models import EscrowItem, EscrowStatus, ModelBalance, UserBalance
from .requests import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    TransactionReason,
    UserCreditRequest,
)
from .responses import (
    EscrowHoldResponse,
    EscrowPartialSettleResponse,
    EscrowRefundResponse,
    EscrowSettleResponse,
    Response,
    UserCreditResponse,
)
from .service import WalletService
from .views import event_of, request_of, response_of

__all__ = [
    "Authorizer",
    "Books",
    "EscrowHoldRequest",
    "EscrowHoldResponse",
    "EscrowItem",
    "EscrowPartialSettleRequest",
    "EscrowPartialSettleResponse",
    "EscrowRefundRequest",
    "EscrowRefundResponse",
    "EscrowSettleRequest",
    "EscrowSettleResponse",
    "EscrowStatus",
    "ModelBalance",
    "QueueAuthorization",
    "QueuePartialSettlementAuthorization",
    "QueueRefundAuthorization",
    "QueueSettlementAuthorization",
    "Response",
    "TransactionReason",
    "UserBalance",
    "UserCreditRequest",
    "UserCreditResponse",
    "WalletConfig",
    "WalletService",
    "books",
    "event_of",
    "request_of",
    "response_of",
]

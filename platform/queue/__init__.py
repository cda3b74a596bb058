"""The performance queue's authorizations: what may become of a hold, signed."""

from ..core.errors import InvalidRequestError, WalletError
from ..core.refusals import InvalidAuthorizationError
from ..wallets.authorization import QueueAuthorization
from .keyring import KeyFile
from .models import AuthorizationKey
from .service import AuthorizationVerifier, QueueAuthorizer

__all__ = [
    "AuthorizationKey",
    "AuthorizationVerifier",
    "InvalidAuthorizationError",
    "InvalidRequestError",
    "KeyFile",
    "QueueAuthorization",
    "QueueAuthorizer",
    "WalletError",
]

"""The performance queue's authorizations: what may become of a hold, signed."""

from .keyring import KeyFile
from .models import AuthorizationKey
from .service import AuthorizationVerifier, QueueAuthorizer

__all__ = ["AuthorizationKey", "AuthorizationVerifier", "KeyFile", "QueueAuthorizer"]

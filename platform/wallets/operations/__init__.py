"""The operations, one file each, and the list of them."""

from typing import Any

from ...core.errors import InvalidRequestError
from ...core.plain import one
from ..operation import Operation, Response
from .credit import CREDIT
from .deposit import DEPOSIT
from .hold import HOLD
from .open import OPEN
from .partial_settle import PARTIAL_SETTLE
from .refund import REFUND
from .settle import SETTLE
from .spend import SPEND
from .transfer import TRANSFER

OPERATIONS: tuple[Operation[Any, Any], ...] = (
    CREDIT,
    DEPOSIT,
    HOLD,
    SETTLE,
    REFUND,
    PARTIAL_SETTLE,
    SPEND,
    TRANSFER,
    OPEN,
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
BY_REQUEST = {operation.request: operation for operation in OPERATIONS}


def permitted_by(authorization: object) -> Operation[Any, Response]:
    """The operation that an authorization is for. Raises ``InvalidRequestError`` for what is none of the queue's."""
    for operation in OPERATIONS:
        if operation.authorization is not None and type(authorization) is operation.authorization:
            return operation
    expected = "an authorization of the queue's; QueueAuthorization.from_token makes one of a token's text"
    raise InvalidRequestError(field="authorization", value=one(type(authorization)), expected=expected)

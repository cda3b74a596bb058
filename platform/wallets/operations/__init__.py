"""The operations, one file each, and the list of them."""

from typing import Any

from ..operation import Operation
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

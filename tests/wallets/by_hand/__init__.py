"""For each operation the rows that it must leave, written by hand from the design."""

from collections.abc import Sequence

from . import credit, deposit, hold, open, partial_settle, refund, settle, spend, transfer  # noqa: A004 - an operation
from .rows import Case

BY_HAND: dict[str, Sequence[Case]] = {
    "credit": credit.CASES,
    "deposit": deposit.CASES,
    "hold": hold.CASES,
    "settle": settle.CASES,
    "refund": refund.CASES,
    "partial_settle": partial_settle.CASES,
    "spend": spend.CASES,
    "transfer": transfer.CASES,
    "open": open.CASES,
}

"""How the module logs: no line of it can collide with what a host has put into logging, and none raises.

What a line tells beside its message stands in one attribute of its record, ``points_platform``: a dict of what
any JSON writer takes. Names beside each other would collide with those of a host's ``LogRecordFactory`` or filter
(``request_id`` is one that many have), and the standard library then raises ``KeyError``.
"""

import logging
from typing import Any

from .plain import plain

FIELDS = "points_platform"


def extra(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields of a line as the argument ``extra`` of the standard library's logging."""
    return {FIELDS: plain(fields)}


def say(
    log: logging.Logger, level: int, message: str, /, *values: object, exc_info: bool = False, **fields: object
) -> None:
    """Log a line with its fields. Raises nothing, whatever factories, filters, handlers and formatters do."""
    try:
        if log.isEnabledFor(level):
            log.log(level, message, *values, exc_info=exc_info or None, extra=extra(fields), stacklevel=2)
    except Exception:  # noqa: S110 - there is nowhere left to say it
        pass

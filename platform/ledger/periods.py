"""Calendar periods of a time zone, as instants."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ..core.errors import InvalidRequestError
from ..core.values import MAX_PAGE, plain_string

PERIODS = ("day", "week", "month")


def period_edges(period: str, timezone: Any, since: datetime, until: datetime) -> list[datetime]:
    """The instants at which the periods from ``since`` to ``until`` begin, and the end of the last one.

    Raises ``InvalidRequestError`` for another period, an unknown time zone, and no or too many periods.
    """
    kind = plain_string(period)
    if kind is None or kind not in PERIODS:
        raise InvalidRequestError(field="period", value=period, expected=f"one of {', '.join(PERIODS)}")
    zone = _zone(timezone)
    if not since < until:
        raise InvalidRequestError(field="until", value=until, expected="a time after since")
    try:
        return _edges(kind, zone, since, until)
    except OverflowError:
        raise InvalidRequestError(field="until", value=until, expected="periods between the years 1 and 9999") from None


def _edges(period: str, zone: ZoneInfo, since: datetime, until: datetime) -> list[datetime]:
    first = _start(since.astimezone(zone).date(), period)
    edges = [_instant(first, zone)]
    while edges[-1] < until:
        if len(edges) > MAX_PAGE:
            raise InvalidRequestError(field="until", value=until, expected=f"at most {MAX_PAGE} periods after since")
        first = _next(first, period)
        edges.append(_instant(first, zone))
    return edges


def _zone(name: Any) -> ZoneInfo:
    try:
        return ZoneInfo(plain_string(name) or "")
    except (KeyError, ValueError, TypeError, OSError):
        raise InvalidRequestError(
            field="timezone", value=name, expected="the name of a time zone, like Europe/Vienna"
        ) from None


def _instant(day: date, zone: ZoneInfo) -> datetime:
    # Midnight on the wall; where the clocks skip it, the moment at which they do.
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _start(day: date, period: str) -> date:
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else day


def _next(day: date, period: str) -> date:
    if period == "month":
        return (day.replace(day=28) + timedelta(days=4)).replace(day=1)
    return day + timedelta(days=7 if period == "week" else 1)

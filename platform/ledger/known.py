"""Findings that an operator has accepted: old damage that an append-only ledger keeps, told from what is new.

They stand in a file of JSON lines outside the database, where the head is kept: who can write to the database must not
be able to accept what was done to it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TextIO

from ..core.errors import InvalidRequestError
from ..core.values import check_identifier, check_time, now
from .findings import LASTING, Finding
from .log import plain

MOST = 2**20  # characters of a line
MOST_REASON = 1000


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A finding that somebody has accepted: who, why and when."""

    finding: Finding
    by: str
    reason: str
    at: datetime


class Known:
    """The findings of a file, by what they say."""

    def __init__(self, accepted: Iterable[Accepted] = ()) -> None:
        self._accepted = {_identity(each.finding): each for each in accepted}

    def of(self, finding: Finding) -> Accepted | None:
        """How this very finding was accepted; ``None`` for a new one, also where an old one has become another."""
        return self._accepted.get(_identity(finding))


def accept(finding: Finding, *, by: str, reason: str) -> Accepted:
    """The finding, accepted now. Raises ``InvalidRequestError``, also for what goes away when it is put right."""
    if finding.kind not in LASTING:
        expected = "a finding that the ledger keeps for ever, what else there is can be put right"
        raise InvalidRequestError(field="accept", value=finding.kind, expected=expected)
    return Accepted(finding=finding, by=check_identifier("by", by), reason=_check_reason(reason), at=now())


def write_known(file: TextIO, accepted: Iterable[Accepted]) -> None:
    """Append a line for each."""
    for each in accepted:
        said = {**vars(each.finding), "by": each.by, "reason": each.reason, "at": plain(each.at)}
        file.write(json.dumps(said, default=str, ensure_ascii=False) + "\n")


def read_known(file: TextIO) -> Known:
    """What ``write_known`` has written. Raises ``InvalidRequestError`` that names the line of anything else."""
    return Known(_parsed(number, line) for number, line in enumerate(_lines(file), 1))


def _lines(file: TextIO) -> Iterable[str]:
    while line := file.readline(MOST):
        yield line


def _parsed(number: int, line: str) -> Accepted:
    try:
        said = json.loads(line)
        at = check_time("at", datetime.fromisoformat(said.pop("at")))
        by, reason = check_identifier("by", said.pop("by")), _check_reason(said.pop("reason"))
        finding = Finding(**said)
        if finding.kind in LASTING and isinstance(finding.ids, dict):
            return Accepted(finding=finding, by=by, reason=reason, at=at)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, InvalidRequestError):
        pass
    raise InvalidRequestError(field=f"line {number}", value="something else", expected="a finding that was accepted")


def _check_reason(reason: Any) -> str:
    if isinstance(reason, str) and 1 <= len(reason) <= MOST_REASON and reason.isprintable():
        return reason
    expected = f"a text of 1 to {MOST_REASON} printable characters"
    raise InvalidRequestError(field="reason", value=reason, expected=expected)


def _identity(finding: Finding) -> str:
    """What makes it the same one: all that it says, but for what changes without new damage."""
    said: Any = [finding.expected, finding.found]
    if finding.kind == "escrow_balance" and all(type(value) is int for value in said):
        said = finding.found - finding.expected  # both go on with the user's operations
    elif finding.kind == "operation_unknown":
        said = finding.found  # which ones are known is told by the release
    return json.dumps([finding.kind, finding.ids, said], default=str, sort_keys=True)

"""A client's own record of what it was about to send and what was answered, on disk before anything follows."""

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from points_platform.core import WalletError

Line = dict[str, Any]
# Files in a round's folder that tell all processes how far it is: no more faults (since when), no more steps;
# and, with the client's name, who has recovered.
CALM, STOP, RECOVERED = "calm", "stop", "recovered-"
# A file stays far below the file-size limit under which some workers have to live.
LONGEST_FILE = 1 << 20


def clock() -> float:
    """Seconds of the machine's monotonic clock, the same for all processes, and not to be shifted."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Journal:
    """Lines of JSON, each synced to the disk before ``write`` returns."""

    def __init__(self, folder: Path, client: str) -> None:
        self._folder = folder
        self._client = client
        self._file = -1
        self._begin()

    def _begin(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        number = sum(1 for _ in self._folder.glob(f"{self._client}_*.jsonl"))
        path = self._folder / f"{self._client}_{number:05d}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._length = 0

    def write(self, **line: Any) -> None:
        """Add a line, with the time."""
        text = json.dumps({"at": clock(), **line}, default=_plain).encode() + b"\n"
        if self._length + len(text) > LONGEST_FILE:
            self._begin()
        self._length += os.write(self._file, text)
        os.fdatasync(self._file)


def lines(folder: Path, client: str) -> Iterator[Line]:
    """All lines of a client, in order; the last one of a file may have been torn by a kill."""
    for path in sorted(folder.glob(f"{client}_*.jsonl")):
        for text in path.read_bytes().split(b"\n")[:-1]:
            yield json.loads(text)


def acknowledged_by(answer: Line) -> list[Line]:
    """The outcomes of an answer that stand for a transaction in force."""
    outcomes = answer.get("outcomes", []) if answer.get("committed", True) else []
    return [outcome for outcome in outcomes if "transaction_id" in outcome]


def fields_of(answer: Any) -> Line:
    """A response, a balance, an event or a request, as it stands in a journal."""
    fields: Line = json.loads(json.dumps(vars(answer), default=_plain))
    return fields


def refusal_of(error: WalletError) -> Line:
    """An error, as it stands in a journal."""
    refusal: Line = json.loads(
        json.dumps({"code": error.code, "retryable": error.retryable, "details": error.details}, default=str)
    )
    return refusal


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)

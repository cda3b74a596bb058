"""How the time of a refusal grows with the size of what is refused: ``python -m torture.sizes``.

Each input is refused at a size and at four times that size; a factor near 4 is linear, near 16 quadratic, and
near 1 says that there is a limit before anything is read. Figures, no promises: a busy machine changes them.
"""

import base64
import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from points_platform.cli.main import main
from points_platform.core import WalletError
from points_platform.core.values import check_identifier, check_metadata, check_reason, decode_cursor
from points_platform.ledger.files import _checked

from .tokens import Mint, verify

Refuse = Callable[[Any], object]
MINT = Mint(Random(1))
ROUNDS = 5
FACTOR = 4


@dataclass(frozen=True)
class Growth:
    """Seconds at a size, and by what factor they grow when the size grows by four."""

    name: str
    size: int
    seconds: float
    factor: float


def _verify(text: str) -> object:
    return verify(MINT, MINT.genuine[0], text)


def _metadata(value: object) -> object:
    return check_metadata("metadata", value)


def _file(text: str) -> object:
    return list(_checked(io.StringIO(text)))


def _cursor(text: str) -> object:
    return decode_cursor("after", text, str)


def _command(text: str) -> object:
    with redirect_stderr(io.StringIO()):
        return main(["balance", text, "--database", "sqlite:////nowhere/at/all.db"])


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


# What refuses, what makes it of a size, and the smaller size.
CASES: dict[str, tuple[Refuse, Callable[[int], Any], int]] = {
    "token: letters": (_verify, lambda n: "A" * n, 10**7),
    "token: segments": (_verify, lambda n: "A." * (n // 2), 10**7),
    "token: within the limit": (_verify, lambda n: f"{'A' * (n // 2)}.{'A' * (n // 2)}.A", 3000),
    "identifier": (lambda text: check_identifier("user_id", text), lambda n: "x" * n, 10**7),
    "code": (lambda text: check_reason("reason", text), lambda n: "x" * n, 10**6),
    "metadata: one text": (_metadata, lambda n: {"a": "x" * n}, 10**6),
    "metadata: escapes": (_metadata, lambda n: {"a": "\0" * n}, 10**6),
    "metadata: keys": (_metadata, lambda n: {str(k): k for k in range(n)}, 10**5),
    "metadata: members": (_metadata, lambda n: {"a": [0] * n}, 10**6),
    "metadata: depth": (_metadata, lambda n: _nested(n), 10**5),
    "metadata: digits": (_metadata, lambda n: {"a": 1 << n}, 10**6),
    "metadata: many numbers of 4,000 digits": (_metadata, lambda n: {"a": [10**4000] * n}, 400),
    "metadata: shared parts": (_metadata, lambda n: {"a": [["x"] * 100] * n}, 10**4),
    "cursor: letters": (_cursor, lambda n: "A" * n, 10**6),
    "cursor: digits": (_cursor, lambda n: _encoded("[" + "9" * n + "]"), 10**6),
    "cursor: depth": (_cursor, lambda n: _encoded("[" * n), 10**6),
    "cursor: parts": (_cursor, lambda n: _encoded("[" + "1," * n + "1]"), 10**5),
    "file: one line": (_file, lambda n: "x" * n, 10**6),
    "file: digits": (_file, lambda n: '{"position":' + "9" * n + "}\n", 10**6),
    "file: depth": (_file, lambda n: "[" * n, 10**6),
    "file: members": (_file, lambda n: '{"a":[' + "0," * n + "0]}\n", 10**5),
    "command: letters": (_command, lambda n: "x" * n, 10**4),
    "command: what looks like passwords": (_command, lambda n: "://:" * (n // 4), 10**4),
    "command: passwords": (_command, lambda n: "a://b:" + "c:" * (n // 2) + "@", 2000),
}


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return {"a": value}


def growth(name: str) -> Growth:
    """Measure one case: the fastest of some rounds, which is the one that the machine disturbed least."""
    refuse, make, size = CASES[name]
    small, large = (min(_seconds(refuse, make(n)) for _ in range(ROUNDS)) for n in (size, FACTOR * size))
    return Growth(name=name, size=size, seconds=small, factor=large / small)


def _seconds(refuse: Refuse, given: Any) -> float:
    begun = time.perf_counter()
    with suppress(WalletError):
        refuse(given)
    return time.perf_counter() - begun


if __name__ == "__main__":
    for each in map(growth, CASES):
        print(f"{each.name:<40} {each.size:>10,} {each.seconds * 1e6:>12,.0f} µs  x {each.factor:.1f}")

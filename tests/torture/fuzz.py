"""Coverage-guided fuzzing of what reads foreign bytes: ``python -m torture.fuzz token|cursor|request|file [options]``.

It needs the package ``atheris``, which is in no lock; the options are libFuzzer's (``-max_total_time=300``). Whatever
is neither accepted as it should be nor refused by name ends the run, and libFuzzer writes down the input.
"""

import gc
import io
import json
import sys
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from random import Random
from types import FunctionType
from typing import Any

from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from points_platform.core.values import decode_cursor, encode_cursor
from points_platform.ledger.files import _checked
from points_platform.wallets import EscrowHoldRequest

from .tokens import Accepted, Mint, compact, verify

WATCHED = ("points_platform", "jwt", "json", "base64")
MINT = Mint(Random(1))
GENUINE = MINT.genuine[0]


def token(data: bytes) -> None:
    """As a token, and as the header and the claims of one that is signed with the right key."""
    header, _, claims = data.partition(b"\n")
    signed = compact(header, claims, GENUINE.sign), compact(GENUINE.header, claims, GENUINE.sign)
    for given in (data.decode("utf-8", "surrogateescape"), data.decode("latin-1"), *signed):
        try:
            verify(MINT, GENUINE, given)
        except InvalidAuthorizationError:
            continue
        said = json.loads(claims) if given in signed else {}
        if given != GENUINE.token and said.items() < GENUINE.claims.items():
            raise Accepted(given)


def cursor(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for kinds in ((str,), (datetime, int, str, str)):
        try:
            parts = decode_cursor("after", text, *kinds)
        except InvalidRequestError:
            continue
        if encode_cursor(*parts) != text:
            raise Accepted(text)


def request(data: bytes) -> None:
    """Fields from any JSON: valid, and then the same again from what was accepted, or refused by its name."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    names = (
        "idempotency_key",
        "request_id",
        "user_id",
        "reason",
        "amount",
        "queue_item_id",
        "feature_type",
        "metadata",
    )
    values = dict(zip(names, given, strict=False)) if isinstance(given, list) else {"metadata": given}
    fields = {"reason": "r", "amount": 1, "feature_type": "f", **dict.fromkeys(names[:3], "x"), "queue_item_id": "q"}
    try:
        made = EscrowHoldRequest(**{**fields, **values})
    except InvalidRequestError as refusal:
        if refusal.details["field"] not in values:
            raise
        return
    if made != EscrowHoldRequest(**vars(made)):
        raise Accepted(repr(values))


def file(data: bytes) -> None:
    """As an export; begin with a corpus of real ones, whose every change must be refused by its line."""
    try:
        for _ in _checked(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape", newline="\n")):
            pass
    except InvalidRequestError:
        return


TARGETS: dict[str, Callable[[bytes], None]] = {each.__name__: each for each in (token, cursor, request, file)}


def main(arguments: list[str]) -> None:
    if find_spec("atheris") is None:
        sys.exit("fuzzing needs the package atheris: pip install atheris (it is in no lock)")
    if len(arguments) < 2 or arguments[1] not in TARGETS:
        sys.exit(f"usage: python -m torture.fuzz {'|'.join(TARGETS)} [libFuzzer options]")
    atheris: Any = import_module("atheris")
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and str(each.__module__).startswith(WATCHED):
            atheris.instrument_func(each)
    atheris.Setup([arguments[0], *arguments[2:]], TARGETS[arguments[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)

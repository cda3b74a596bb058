"""After a round: the judge, the checker, and what everybody is told who asks again."""

import random
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from points_platform.core import Database, WalletError
from points_platform.queue import QueueAuthorizer
from points_platform.wallets.verify import verify
from support.recount import recount

from .bursts import histories
from .client import KEY, wallets_on
from .history import Call, Ledger
from .journal import Line, fields_of
from .judge import Finding, Judge, acknowledged, unacknowledged
from .linearizability import Undecided, explain
from .operations import ENDS, OPERATIONS, request_of

# Of what was acknowledged, so many are sent again as well.
SAMPLE = 200
# Of attempts to order a history: far more than any has needed yet, so that one that is left undecided is looked at.
LIMIT = 1_000_000


def conclude(database: Database, calls: Sequence[Call], seed: str, counts: Counter[str]) -> Iterator[Finding]:
    """Everything that is wrong in the end; counts what it has looked at."""
    ledger = Ledger.of(database)
    yield from Judge(calls, ledger).findings()
    yield from _linearizable(calls, counts)
    yield from (Finding("sent again", what) for what in _send_again(database, calls, ledger, seed, counts))
    try:
        recount(database)
    except AssertionError as error:
        yield Finding("invariants recounted", str(error))
    # A planted bug has taken walls down, and is to be found by what it does.
    found = (each for each in verify(database) if each.kind != "constraint_missing")
    yield from (Finding("verify", str(each)) for each in found)


def _linearizable(calls: Sequence[Call], counts: Counter[str]) -> Iterator[Finding]:
    for burst, history in histories(calls).items():
        counts["histories"] += 1
        counts["calls in histories"] += len(history)
        try:
            account = explain(history, limit=LIMIT)
        except Undecided as undecided:
            counts["histories undecided"] += 1
            yield Finding("linearizability", f"burst {burst}: {undecided}")
            continue
        if account is not None:
            yield Finding("linearizability", f"burst {burst}: {account}")


def _send_again(
    database: Database, calls: Sequence[Call], before: Ledger, seed: str, counts: Counter[str]
) -> Iterator[str]:
    """What nobody was told the outcome of, and a sample of the rest, gets one answer for ever: that of the ledger."""
    open_, known = unacknowledged(calls), acknowledged(calls)
    sample = random.Random(seed).sample(sorted(known), min(SAMPLE, len(known)))
    counts["sent again at the end"] = len(open_) + len(sample)
    asked = open_ | {key: known[key] for key in sample}
    answers = {key: _ask_twice(database, part) for key, part in asked.items()}
    after, there = Ledger.of(database), set(before.transactions)
    for key, (first, second) in answers.items():
        if transaction := after.transaction_of(asked[key]):
            told, id_ = after.answer(transaction), transaction["transaction_id"]
            if (first, second) != (told | {"replayed": id_ in there}, told | {"replayed": True}):
                yield f"{key} is in the ledger as {told}; sent again twice it was answered with {first} and {second}"
            there.add(id_)  # and another key may have deposited the same
        elif first != second or first.get("code") not in OPERATIONS[key[1]].refusals:
            yield f"{key} is not in the ledger; sent again twice it was answered with {first} and {second}"


def _ask_twice(database: Database, part: Line) -> tuple[Line, Line]:
    request = request_of(part["operation"], part["request"] | {"request_id": "aftermath"})
    # Services of their own, so that no cache answers.
    return _ask(database, part["operation"], request), _ask(database, part["operation"], request)


def _ask(database: Database, operation: str, request: Any) -> Line:
    send = getattr(wallets_on(database), OPERATIONS[operation].method)
    try:
        return fields_of(send(request, *([QueueAuthorizer(KEY).authorize(request)] if operation in ENDS else [])))
    except WalletError as error:
        return {"code": error.code}
    except Exception:
        return {"unexpected": traceback.format_exc()}

"""The calls of each burst, as histories for the checker of linearizability."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from . import linearizability
from .history import Call
from .journal import Line
from .operations import OPERATIONS, request_of
from .plan import STREAM, UNAUTHORIZED

BALANCE_OF = {"escrows": "user_balance", "statement": "user_balance", "earnings": "model_balance"}
READ = ("available", "escrow", "earned", "version", "status", "settled_amount", "refunded_amount", "amount", "code")


def histories(calls: Sequence[Call]) -> dict[int, list[linearizability.Call]]:
    """By burst, what two clients or more have sent to wallets that nobody else knows."""
    bursts: dict[int, list[linearizability.Call]] = defaultdict(list)
    for call in calls:
        series = call.asked["series"]
        if series != STREAM:
            bursts[series] += _converted(call)
    return {burst: history for burst, history in bursts.items() if len({call.worker for call in history}) > 1}


def _converted(call: Call) -> Iterator[linearizability.Call]:
    asked, outcomes = call.asked["parts"], _outcomes(call)
    parts = tuple(
        _part(part, outcome)
        for part, outcome in zip(asked, outcomes, strict=False)
        if not _left_out(call, outcome or {})
    )
    if not parts or (call.form == "read" and call.committed is None):
        return
    yield linearizability.Call(
        worker=call.client,
        invoked=call.invoked,
        returned=None if call.committed is None else call.returned,
        parts=parts,
        undone=call.committed is False and call.form in ("many", "session"),
    )


def _left_out(call: Call, outcome: Line) -> bool:
    """What tells nothing of the one moment at which all parts of a call took effect."""
    if outcome.get("retryable"):
        return True
    if call.form == "session":
        return (
            "code" in outcome
        )  # its savepoint was undone, and its locks with it: it was refused at a moment of its own
    # In a batch, what rests on a row that is not there locks nothing: the row may be made before the commit.
    missing = outcome.get("code") == "escrow_not_found" or outcome.get("details", {}).get("available") == 0
    return call.form == "many" and missing


def _outcomes(call: Call) -> list[Line | None]:
    """What is known of each part: of an atomic batch that was refused, that those before the refused one were not.

    But authorizations are verified before anything else, so that a refused one says nothing of the others.
    """
    answer = call.answer or {}
    if "outcomes" in answer:
        return list(answer["outcomes"])
    if "error" in answer and not answer["error"]["retryable"]:
        error = answer["error"]
        before: Line | None = None if error["code"] == "invalid_authorization" else {}
        return [before] * int(error["details"].get("index", 0)) + [error]
    return [None] * (0 if call.committed is False else len(call.asked["parts"]))


def _part(part: Line, outcome: Line | None) -> linearizability.Part:
    if part["operation"] not in OPERATIONS:
        return _read(part["operation"], part["request"], outcome)
    return linearizability.Part(
        operation=part["operation"],
        request=request_of(part["operation"], part["request"]),
        authorized=part["flaw"] not in UNAUTHORIZED,
        outcome=outcome,
    )


def _read(operation: str, request: Line, outcome: Line | None) -> linearizability.Part:
    """What was read; of what is listed and summed up, what it tells of the balance."""
    read = None if outcome is None else {name: outcome[name] for name in READ if name in outcome}
    if outcome and "items" in outcome and not request.get("after") and not outcome["next"]:
        read = _summed_up(operation, outcome["items"])
    return linearizability.Part(operation=BALANCE_OF.get(operation, operation), request=request, outcome=read)


def _summed_up(operation: str, items: Sequence[Line]) -> Line:
    if operation == "statement":
        return {"available": items[0]["balance_after"] if items else 0}
    name, part = {"escrows": ("escrow", "amount"), "earnings": ("earned", "earned")}[operation]
    return {name: sum(item[part] for item in items)}

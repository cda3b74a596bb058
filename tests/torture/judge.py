"""The judge: what was answered, what is in the ledger and what was announced must be one and the same story."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from .client import ENDS, METHODS
from .history import Call, Key, Ledger, key_of, without_flag
from .journal import Line
from .plan import UNAUTHORIZED

RETRYABLE = {"storage_unavailable", "optimistic_lock"}
# Refusals that a request without a flaw may get, and what one with a flaw must get, if it is not overtaken.
REFUSALS = {
    "credit": {"balance_limit"},
    "hold": {"insufficient_balance"},
    **{end: {"idempotency_conflict", "escrow_not_found", "escrow_already_processed", "balance_limit"} for end in ENDS},
    "escrow": {"escrow_not_found"},
}
REFUSALS_OF_FLAW = {
    **{flaw: {"invalid_authorization"} for flaw in UNAUTHORIZED},
    "amount": {"escrow_mismatch", "escrow_already_processed", "escrow_not_found"},
    "user": {"escrow_not_found"},
}
STATUS = {"settle": "settled", "refund": "refunded", "partial_settle": "partially_settled"}


class Finding(NamedTuple):
    """What was found, and which of the checks has found it."""

    check: str
    what: str


Findings = Iterator[str]


def judge(calls: Sequence[Call], ledger: Ledger) -> Iterator[Finding]:
    """Everything in which the journals, the events and the ledger contradict each other."""
    by_name = {call.name: call for call in calls}
    checks = {
        "documented errors": _of_each(_unexpected, calls),
        "answers are in the ledger": _of_each(partial(_answers, ledger), calls),
        "refusals are true": _of_each(partial(_refusals, ledger), calls),
        "callers' transactions": _of_each(partial(_session, ledger), calls),
        "effects were asked for": _effects(by_name, ledger),
        "events": _events(calls, ledger),
        "one answer for ever": _replays(calls),
        "real time": _real_time(calls, ledger),
    }
    return (Finding(name, what) for name, found in checks.items() for what in found)


def _of_each(check: Callable[[Call], Findings], calls: Sequence[Call]) -> Findings:
    return (what for call in calls for what in check(call))


def _unexpected(call: Call) -> Findings:
    if call.answer is not None and "unexpected" in call.answer:
        yield f"{call.name}: an exception that is not documented: {call.answer['unexpected']}"


def _answers(ledger: Ledger, call: Call) -> Findings:
    """Every acknowledged operation is in the ledger, with the answer that was given."""
    for part, outcome in call.successes() if call.committed else ():
        transaction = ledger.by_key.get(key_of(part))
        if transaction is None:
            yield f"{call.name}: {key_of(part)} was acknowledged and is not in the ledger"
            continue
        recorded, given = ledger.answer(transaction), without_flag(outcome)
        if given != recorded:
            yield f"{call.name}: {key_of(part)} was answered with {given}, the ledger says {recorded}"
        if part["mutation"]:
            yield f"{call.name}: {key_of(part)} with another {part['mutation']} was accepted"
        maker = transaction["request_id"]
        # In a caller's transaction the same key may be sent twice.
        if outcome["replayed"] == (maker == call.name) and not (outcome["replayed"] and call.form == "session"):
            yield f"{call.name}: {key_of(part)} was answered with replayed={outcome['replayed']}, {maker} has done it"


def _refusals(ledger: Ledger, call: Call) -> Findings:
    """Every refusal is one of those that are documented for the operation, and was true."""
    for part, outcome in call.outcomes():
        if "code" not in outcome:
            continue
        code, expected = outcome["code"], _expected(part)
        if outcome["retryable"] != (code in RETRYABLE):
            yield f"{call.name}: {code} with retryable={outcome['retryable']}"
        elif code in RETRYABLE:
            continue
        elif code not in expected:
            yield f"{call.name}: {key_of(part)} was refused with {outcome}, where only {sorted(expected)} can be"
        elif (call.form == "one" or call.committed) and not _is_true(part, outcome, ledger):
            yield f"{call.name}: {key_of(part)} was refused with {outcome}, which is not so"


def _expected(part: Line) -> set[str]:
    """The refusals that a part may get."""
    if part["mutation"]:
        return {"idempotency_conflict"}
    return REFUSALS_OF_FLAW[part["flaw"]] if part["flaw"] else REFUSALS.get(part["operation"], set())


def _is_true(part: Line, refusal: Line, ledger: Ledger) -> bool:
    """Whether what a refusal says was so at some time."""
    request, details = part["request"], refusal["details"]
    match refusal["code"]:
        case "insufficient_balance":
            states = ledger.versions.get(f"user:{request['user_id']}", {})
            balances = {0} | {state["available"] for state in states.values()}
            return request["amount"] > details["available"] and details["available"] in balances
        case "escrow_already_processed":
            item = ledger.items.get(request["escrow_id"], {"status": None})
            return bool(item["status"] == details["status"] != "held")
        case "idempotency_conflict":
            # Who was refused a hold ends some item that is not there; who was not may have used that very key.
            transaction = ledger.by_key.get(key_of(part))
            meant = request.get("escrow_id")
            return transaction is not None and (bool(part["mutation"]) or transaction["escrow_id"] != meant)
        case "escrow_not_found":
            item = ledger.items.get(request["escrow_id"], {"user_id": None})
            return bool(item["user_id"] != request.get("user_id", item["user_id"]) or item["user_id"] is None)
    return True


def _session(ledger: Ledger, call: Call) -> Findings:
    """A caller's transaction is there as a whole or not at all, and not at all if it was rolled back."""
    if call.form != "session":
        return
    own = [outcome["transaction_id"] for _, outcome in call.successes() if not outcome["replayed"]]
    there = [each for each in own if each in ledger.transactions]
    if call.committed is False and there:
        yield f"{call.name}: {there} are in the ledger, though the caller has rolled back"
    if call.committed is None and there and len(there) != len(own):
        yield f"{call.name}: of the caller's transaction only {there} are in the ledger, {own} were answered"


def _effects(calls: dict[str, Call], ledger: Ledger) -> Findings:
    """Every transaction was asked for, with exactly its values, by a call that was not told otherwise."""
    for transaction in ledger.transactions.values():
        key = transaction["owner_id"], transaction["operation"], transaction["idempotency_key"]
        call = calls.get(transaction["request_id"])
        part = next((part for part in call.asked["parts"] if key_of(part) == key), None) if call else None
        if call is None or part is None:
            yield f"{key}: in the ledger, but nobody has asked for it"
            continue
        if part["flaw"] or part["mutation"]:
            yield f"{call.name}: {key} has had an effect in spite of {part['flaw'] or part['mutation']}"
        if call.committed is False:
            yield f"{call.name}: {key} is in the ledger, but its caller was told {call.answer}"
        elif call.committed and all(
            each["transaction_id"] != transaction["transaction_id"] for _, each in call.successes()
        ):
            yield f"{call.name}: {key} is in the ledger, but the answer was {call.answer}"
        if part["authorization"] != transaction["authorization_id"]:
            yield f"{call.name}: {key} was permitted by {part['authorization']}, not {transaction['authorization_id']}"
        yield from _differences(call, part["request"], transaction)


def _differences(call: Call, request: Line, transaction: Line) -> Findings:
    entries = transaction["entries"]
    amounts = {bucket: entry["amount"] for bucket, entry in entries.items() if bucket != "issued"}
    amount = request.get("amount", 0)
    expected: dict[str, dict[str, int]] = {
        "credit": {"available": amount},
        "hold": {"available": -amount, "escrow": amount},
        "settle": {"escrow": -amount, "earned": amount},
        "refund": {"escrow": -amount, "available": amount},
    }
    settled, refunded = request.get("settle_amount", 0), request.get("refund_amount", 0)
    split = {"escrow": -settled - refunded, "earned": settled, "available": refunded}
    if amounts != expected.get(transaction["operation"], split):
        yield f"{call.name}: {request} has moved {amounts}"
    for name in ("reason", "queue_item_id", "model_id"):
        if name in request and request[name] != transaction[name]:
            yield f"{call.name}: the ledger has {name} {transaction[name]!r}, the request {request[name]!r}"
    if "escrow_id" in request and request["escrow_id"] != transaction["escrow_id"]:
        yield f"{call.name}: the ledger has escrow item {transaction['escrow_id']}, the request {request['escrow_id']}"
    metadata = transaction["metadata"]
    if request["metadata"] != (None if metadata is None else json.loads(metadata)):
        yield f"{call.name}: the ledger has metadata {metadata!r}, the request {request['metadata']!r}"


def _events(calls: Sequence[Call], ledger: Ledger) -> Findings:
    """Events announce what this very call has committed, once; and of what was answered as new none is missing."""
    seen = Counter(event["event_id"] for call in calls for event in call.events)
    yield from (f"{event_id}: {count} events" for event_id, count in seen.items() if count > 1)
    for call in calls:
        for event in call.events:
            yield from _false_event(call, event, ledger)
        for part, outcome in call.successes() if call.committed and call.form != "session" else ():
            if not outcome["replayed"] and outcome["transaction_id"] not in seen:
                yield f"{call.name}: {key_of(part)} was answered as new, and no event was seen"


def _false_event(call: Call, event: Line, ledger: Ledger) -> Findings:
    transaction = ledger.transactions.get(event["event_id"])
    if transaction is None:
        yield f"{call.name}: an event for {event['event_id']}, which is not in the ledger"
        return
    if transaction["request_id"] != call.name:
        yield f"{call.name}: an event for {event['event_id']}, which {transaction['request_id']} has done"
    answer = ledger.answer(transaction)
    answer["occurred_at"] = answer["timestamp"]
    answer |= {name: transaction[name] for name in ("idempotency_key", "request_id", "reason")}
    wrong = {name: event[name] for name in event.keys() & answer.keys() if event[name] != answer[name]}
    if wrong:
        yield f"{call.name}: an event says {wrong}, the ledger {answer}"


def _replays(calls: Sequence[Call]) -> Findings:
    """Whoever sends a key again gets the answer that the first one got."""
    answers: dict[Key, Line] = {}
    for call in calls:
        if call.committed:
            for part, outcome in call.successes():
                given = without_flag(outcome)
                if answers.setdefault(key_of(part), given) != given:
                    yield f"{call.name}: {key_of(part)} was answered with {given}, before with {answers[key_of(part)]}"


def _real_time(calls: Sequence[Call], ledger: Ledger) -> Findings:
    """Per wallet: what was answered before something else was asked comes before it, and every read is such a state."""
    invoked = {call.name: call.invoked for call in calls}
    returned: dict[str, float] = defaultdict(lambda: math.inf)
    for call in calls:
        if call.committed:
            for _, outcome in call.successes():
                identity = outcome["transaction_id"]
                returned[identity] = min(returned[identity], call.returned)
    reads: dict[str, list[tuple[Call, Line]]] = defaultdict(list)
    for call in calls:
        for part, outcome in call.outcomes():
            if part["operation"] in ("user_balance", "model_balance") and "version" in outcome:
                kind = part["operation"].removesuffix("_balance")
                reads[f"{kind}:{outcome[f'{kind}_id']}"].append((call, outcome))
    for account in ledger.versions.keys() | reads.keys():
        states = ledger.versions.get(account, {})
        yield from _order(account, states, reads.get(account, []), ledger, invoked, returned)


def _order(
    account: str,
    states: dict[int, Line],
    reads: Sequence[tuple[Call, Line]],
    ledger: Ledger,
    invoked: dict[str, float],
    returned: dict[str, float],
) -> Findings:
    begun = [-math.inf]  # by version: the latest beginning of what made it and all versions before it
    for version in sorted(states):
        identity = states[version]["transaction_id"]
        if returned[identity] < begun[-1]:
            yield f"{account}: version {version} was answered before an earlier version was asked for"
        maker = ledger.transactions.get(identity, {}).get("request_id", "")
        begun.append(max(begun[-1], invoked.get(maker, -math.inf)))
    ended = [math.inf]  # by version, from the end: the earliest answer of what made any later version
    for version in sorted(states, reverse=True):
        ended.append(min(ended[-1], returned[states[version]["transaction_id"]]))
    ended.reverse()
    for call, balance in reads:
        version = balance["version"]
        state: dict[str, Any] = states.get(version, {}) if version else {}
        names = ("available", "escrow") if "available" in balance else ("earned",)
        if version > len(states) or any(balance[name] != state.get(name, 0) for name in names):
            yield f"{call.name}: read {balance}, the ledger has {state} at version {version}"
        elif begun[version] > call.returned:
            yield f"{call.name}: read version {version} of {account} before it was asked for"
        elif ended[version] < call.invoked:
            yield f"{call.name}: read version {version} of {account}, though a later one had been answered"


def unacknowledged(calls: Sequence[Call]) -> dict[Key, Line]:
    """The parts whose outcome nobody was told, or was told to ask again for, by key."""
    known = {key_of(part) for call in calls if call.committed for part, _ in call.successes()}
    open_parts: dict[Key, Line] = {}
    for call in calls:
        retryable = (call.answer or {}).get("error", {}).get("retryable")
        for part in call.asked["parts"] if call.committed is None or retryable else []:
            if part["operation"] in METHODS and not part["flaw"] and not part["mutation"] and key_of(part) not in known:
                open_parts[key_of(part)] = part
    return open_parts

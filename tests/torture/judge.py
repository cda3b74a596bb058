"""The judge: what was answered, what is in the ledger and what was announced must be one and the same story."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple

from .history import Call, Key, Ledger, claimed_otherwise, key_of, without_flag
from .journal import Line
from .operations import OPERATIONS
from .plan import LIMIT
from .reads import Reads
from .timelines import Evidence

RETRYABLE = {"storage_unavailable", "optimistic_lock"}
CAUSES = {"token": "signature", "expired": "expired", "other_action": "claim_mismatch"}
# What a request with a flaw must get, if it is not overtaken.
REFUSALS_OF_FLAW = {
    **{flaw: {"invalid_authorization"} for flaw in CAUSES},
    "amount": {"escrow_mismatch", "escrow_already_processed", "escrow_not_found"},
    "user": {"escrow_not_found"},
}
FEW = 5


class Taker(NamedTuple):
    """To whom points are given: the request's field, the kind of wallet, the buckets that count, and what is told.

    Of another's balance nothing is said.
    """

    field: str
    kind: str
    buckets: tuple[str, ...]
    balance_told: bool = True


OF_USER = ("available", "escrow")
OF_LIMIT = {
    "credit": Taker("user_id", "user", OF_USER),
    "deposit": Taker("user_id", "user", OF_USER),
    "transfer": Taker("recipient_id", "user", OF_USER, balance_told=False),
    "settle": Taker("model_id", "model", ("earned",)),
    "partial_settle": Taker("model_id", "model", ("earned",)),
}


class Finding(NamedTuple):
    """What was found, and which of the checks has found it."""

    check: str
    what: str


Findings = Iterator[str]


class Judge:
    """Knows everything in which the journals, the events and the ledger contradict each other."""

    def __init__(self, calls: Sequence[Call], ledger: Ledger) -> None:
        self.calls = calls
        self.ledger = ledger
        self.evidence = Evidence(calls, ledger)

    def findings(self) -> Iterator[Finding]:
        """All of them, by check."""
        checks: dict[str, Callable[[], Findings]] = {
            "documented errors": self._unexpected,
            "answers are in the ledger": self._answers,
            "refusals are true": self._refusals,
            "all or nothing": self._whole,
            "effects were asked for": self._effects,
            "claims": self._claims,
            "events": self._events,
            "one answer for ever": self._replays,
            "real time": self._real_time,
            "reads": Reads(self.evidence).findings,
        }
        return (Finding(name, what) for name, check in checks.items() for what in check())

    def _unexpected(self) -> Findings:
        for call in self.calls:
            answer = call.answer or {}
            if "unexpected" in answer:
                yield f"{call.name}: an exception that is not documented: {answer['unexpected']}"
            if call.answer and not answer.keys() & {"outcomes", "error", "unexpected"}:
                yield f"{call.name}: an answer that says nothing: {answer}"
            if call.form != "session" and "outcomes" in answer and len(answer["outcomes"]) != len(call.asked["parts"]):
                yield f"{call.name}: {len(answer['outcomes'])} answers to {len(call.asked['parts'])} requests"

    def _answers(self) -> Findings:
        """Every acknowledged operation is in the ledger, with the answer that was given."""
        for call in self.calls:
            told: set[str] = set()
            for part, outcome in call.successes() if call.committed else ():
                transaction = self.ledger.transaction_of(part)
                if transaction is None:
                    yield f"{call.name}: {key_of(part)} was acknowledged and is not in the ledger"
                    continue
                yield from self._false_answer(call, part, outcome, transaction)
                # One call may ask for the same twice: it is new only the first time.
                first = transaction["request_id"] == call.name and outcome["transaction_id"] not in told
                told.add(outcome["transaction_id"])
                if outcome["replayed"] == first:
                    maker = f"{transaction['request_id']} has done it"
                    yield f"{call.name}: {key_of(part)} was answered with replayed={outcome['replayed']}, {maker}"

    def _false_answer(self, call: Call, part: Line, outcome: Line, transaction: Line) -> Findings:
        recorded, given = self.ledger.answer(transaction), without_flag(outcome)
        if given != recorded:
            yield f"{call.name}: {key_of(part)} was answered with {given}, the ledger says {recorded}"
        if part["mutation"]:
            yield f"{call.name}: {key_of(part)} with another {part['mutation']} was accepted"

    def _refusals(self) -> Findings:
        """Every refusal is one of those that are documented for the operation, and was true."""
        for call in self.calls:
            for part, outcome in call.outcomes():
                if "code" in outcome:
                    yield from self._false_refusal(call, part, outcome)

    def _false_refusal(self, call: Call, part: Line, refusal: Line) -> Findings:
        code, expected = refusal["code"], _expected(part)
        if refusal["retryable"] != (code in RETRYABLE):
            yield f"{call.name}: {code} with retryable={refusal['retryable']}"
        elif code in RETRYABLE:
            return
        elif code not in expected:
            yield f"{call.name}: {key_of(part)} was refused with {refusal}, where only {sorted(expected)} can be"
        # What a transaction had before it was undone is in no ledger.
        elif (call.form == "one" or call.committed) and not getattr(self, f"_{code}")(call, part, refusal["details"]):
            yield f"{call.name}: {key_of(part)} was refused with {refusal}, which was not so at that time"

    def _insufficient_balance(self, call: Call, part: Line, details: Line) -> bool:
        wallet, amount = self.evidence.timeline(f"user:{part['request']['user_id']}"), part["request"]["amount"]
        seen = {state["available"] for state in wallet.seen(call)}
        return bool(details["available"] in seen and amount == details["required"] > details["available"])

    def _balance_limit(self, call: Call, part: Line, details: Line) -> bool:
        request, taker = part["request"], OF_LIMIT[part["operation"]]
        account = f"{taker.kind}:{request[taker.field]}"
        amount = request.get("settle_amount", request.get("amount"))
        seen = {sum(state[bucket] for bucket in taker.buckets) for state in self.evidence.timeline(account).seen(call)}
        too_much = {balance for balance in seen if amount + balance > LIMIT}
        if not details.items() >= {"limit": LIMIT, "amount": amount}.items():
            return False
        return details.get("balance") in too_much if taker.balance_told else bool(too_much) and "balance" not in details

    def _deposit_conflict(self, call: Call, part: Line, details: Line) -> bool:
        """Somebody else has claimed it, not after this was refused, with what is told to differ."""
        request = part["request"]
        claim = self.ledger.claims.get((request["source"], request["reference"]))
        if claim is None:
            return False
        maker = self.evidence.maker(self.ledger.transactions.get(claim["transaction_id"]))
        expected = [name for name in ("user_id", "amount", "currency") if name in claimed_otherwise(claim, request)]
        said = {"source": request["source"], "reference": request["reference"], "fields": expected}
        in_time = maker is None or maker.invoked <= call.returned
        return bool(expected and details.items() >= said.items() and in_time)

    def _escrow_already_processed(self, call: Call, part: Line, details: Line) -> bool:
        end = self.ledger.ends.get(part["request"]["escrow_id"])
        maker = self.evidence.maker(end)
        return (
            end is not None
            and details["status"] == OPERATIONS[end["operation"]].status
            and (maker is None or maker.invoked <= call.returned)
        )

    def _escrow_not_found(self, call: Call, part: Line, details: Line) -> bool:
        item = self.ledger.items.get(part["request"]["escrow_id"])
        return item is None or item["user_id"] != part["request"].get("user_id", item["user_id"])

    def _escrow_mismatch(self, call: Call, part: Line, details: Line) -> bool:
        amount = self.ledger.items[part["request"]["escrow_id"]]["amount"]
        said = {"field": "amount", "expected": str(amount), "given": str(amount + 1)}
        return said == {name: str(details[name]) for name in said}

    def _idempotency_conflict(self, call: Call, part: Line, details: Line) -> bool:
        transaction = self.ledger.by_key.get(key_of(part))
        maker = self.evidence.maker(transaction)
        if maker is None:
            return False
        request, first = part["request"], _part_of(maker, key_of(part))["request"]
        return set(details["fields"]) == {
            name for name in first if name != "request_id" and first[name] != request[name]
        }

    def _invalid_authorization(self, call: Call, part: Line, details: Line) -> bool:
        return bool(details["cause"] == CAUSES[part["flaw"]])

    def _whole(self) -> Findings:
        """A caller's transaction or an atomic batch is there as a whole, or not at all if it was rolled back."""
        effects = Counter(transaction["request_id"] for transaction in self.ledger.transactions.values())
        for call in self.calls:
            there = effects[call.name]
            if call.form == "session":
                new = sum(not outcome["replayed"] for _, outcome in call.successes())
                if there and (call.committed is False or (call.answer and there != new)):
                    yield f"{call.name}: {there} of {new} are in the ledger of a transaction with {call.answer}"
            if call.form == "many" and call.asked["atomic"] and there:
                missing = [part["key"] for part in call.asked["parts"] if not self.ledger.transaction_of(part)]
                if missing:
                    yield f"{call.name}: {missing} are not in the ledger, but others of the same atomic batch are"

    def _effects(self) -> Findings:
        """Every transaction was asked for, with exactly its values, by a call that was not told otherwise."""
        for transaction in self.ledger.transactions.values():
            key = transaction["owner_id"], transaction["operation"], transaction["idempotency_key"]
            call = self.evidence.maker(transaction)
            if call is None or all(key_of(part) != key for part in call.asked["parts"]):
                yield f"{key}: in the ledger, but nobody has asked for it"
                continue
            part = _part_of(call, key)
            if part["flaw"] or part["mutation"]:
                yield f"{call.name}: {key} has had an effect in spite of {part['flaw'] or part['mutation']}"
            told = {outcome["transaction_id"] for _, outcome in call.successes()}
            if call.committed is not None and not (call.committed and transaction["transaction_id"] in told):
                yield f"{call.name}: {key} is in the ledger, but its caller was told {call.answer}"
            yield from _differences(call, part, transaction)

    def _claims(self) -> Findings:
        """Every deposit has its claim, and every claim its deposit."""
        deposits: dict[str, list[Line]] = defaultdict(list)
        for claim in self.ledger.claims.values():
            deposits[claim["transaction_id"]].append(claim)
        for id_, transaction in self.ledger.transactions.items():
            claims = deposits.pop(id_, [])
            if len(claims) != (transaction["operation"] == "deposit"):
                yield f"{id_}, a {transaction['operation']}, has the claims {claims}"
            for claim in claims:
                owner, currency, details = (transaction[name] for name in ("owner_id", "currency", "details"))
                did = owner, currency, details, _moved(transaction).get((owner, "available"))
                reference = {name: claim[name] for name in ("source", "reference")}
                claimed = claim["owner_id"], claim["currency"], reference, claim["amount"]
                if did != claimed:
                    yield f"{id_} has deposited {did}, claimed was {claimed}"
        yield from (f"{claims}: there is no such deposit" for claims in deposits.values())

    def _events(self) -> Findings:
        """Events announce what this very call has committed, once; and of what was answered as new none is missing."""
        seen = Counter(event["event_id"] for call in self.calls for event in call.events)
        yield from (f"{event_id}: {count} events" for event_id, count in seen.items() if count > 1)
        in_sessions: list[bool] = []
        for call in self.calls:
            for event in call.events:
                yield from self._false_event(call, event)
            for part, outcome in call.successes() if call.committed else ():
                there = outcome["transaction_id"] in seen
                if call.form == "session" and not outcome["replayed"]:
                    in_sessions.append(there)
                elif not outcome["replayed"] and not there:
                    yield f"{call.name}: {key_of(part)} was answered as new, and no event was seen"
        # After a caller's commit the ledger is read anew, which a fault may prevent: few may be missing.
        if in_sessions.count(False) > max(FEW, len(in_sessions) / 2):
            yield f"of {len(in_sessions)} operations in callers' sessions {in_sessions.count(False)} had no event"

    def _false_event(self, call: Call, event: Line) -> Findings:
        transaction = self.ledger.transactions.get(event["event_id"])
        if transaction is None:
            yield f"{call.name}: an event for {event['event_id']}, which is not in the ledger"
        elif transaction["request_id"] != call.name:
            yield f"{call.name}: an event for {event['event_id']}, which {transaction['request_id']} has done"
        elif event != self.ledger.event(transaction):
            yield f"{call.name}: an event says {event}, the ledger {self.ledger.event(transaction)}"

    def _replays(self) -> Findings:
        """Whoever sends a key again gets the answer that the first one got."""
        answers: dict[Key, Line] = {}
        for call in self.calls:
            for part, outcome in call.successes() if call.committed else ():
                given, first = without_flag(outcome), answers.setdefault(key_of(part), without_flag(outcome))
                if first != given:
                    yield f"{call.name}: {key_of(part)} was answered with {given}, before with {first}"

    def _real_time(self) -> Findings:
        """Per wallet: what was answered before something else was asked for comes before it."""
        for account in self.ledger.states:
            yield from self.evidence.timeline(account).contradictions(self.evidence.answered)


def _expected(part: Line) -> Set[str]:
    """The refusals that a part may get."""
    if part["mutation"]:
        return {"idempotency_conflict"}
    if part["flaw"]:
        return REFUSALS_OF_FLAW[part["flaw"]]
    if part["operation"] in OPERATIONS:
        return OPERATIONS[part["operation"]].refusals
    return {"escrow_not_found"} if part["operation"] == "escrow" else set()


def _part_of(call: Call, key: Key) -> Line:
    part: Line = next(part for part in call.asked["parts"] if key_of(part) == key)
    return part


def _differences(call: Call, part: Line, transaction: Line) -> Findings:
    request, metadata = part["request"], transaction["metadata"]
    moved, known = _moved(transaction), OPERATIONS[part["operation"]]
    if moved != known.moves(request) or len(moved) != len(transaction["entries"]):
        yield f"{call.name}: {request} has moved {moved}"
    expected = {
        "currency": "points",
        "reason": request["reason"],
        "queue_item_id": request.get("queue_item_id"),
        "model_id": request.get("model_id"),
        "escrow_id": transaction["escrow_id"] if part["operation"] == "hold" else request.get("escrow_id"),
        "feature_type": "song" if "queue_item_id" in request else None,
        "authorization_id": part["authorization"],
        "metadata": request["metadata"],
        "details": {name: request[name] for name in known.details if request[name] is not None},
    }
    found = {name: transaction[name] for name in expected}
    found["metadata"] = None if metadata is None else json.loads(metadata)
    if found != expected:
        yield f"{call.name}: the ledger has {found}, asked for was {expected}"


def _moved(transaction: Line) -> dict[tuple[str, str], int]:
    return {(entry["account_id"], entry["bucket"]): entry["amount"] for entry in transaction["entries"]}


def acknowledged(calls: Sequence[Call]) -> dict[Key, Line]:
    """The parts that somebody was told of as done, by key."""
    return {key_of(part): part for call in calls if call.committed for part, _ in call.successes()}


def unacknowledged(calls: Sequence[Call]) -> dict[Key, Line]:
    """The parts, by key, whose outcome nobody was told, or was told to ask again for."""
    known = acknowledged(calls)
    found: dict[Key, Line] = {}
    for call in calls:
        refused = {part["key"] for part, outcome in call.outcomes() if not outcome.get("retryable", True)}
        for part in call.asked["parts"]:
            asked = part["operation"] in OPERATIONS and not part["flaw"] and not part["mutation"]
            if asked and part["key"] not in refused and key_of(part) not in known:
                found[key_of(part)] = part
    return found

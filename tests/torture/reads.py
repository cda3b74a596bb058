"""What was read must have been so at one moment between the call and its answer."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, time, timedelta, timezone

from points_platform.core.values import decode_cursor

from .client import PAGE
from .history import Call, version_of
from .journal import Line
from .timelines import Evidence

HELD = {"status": "held", "model_id": None, "settled_amount": 0, "refunded_amount": 0, "processed_at": None}
NEPAL = timezone(timedelta(hours=5, minutes=45))
Findings = Iterator[str]


class Reads:
    """Holds every answer to a read against the ledger."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._ledger = evidence.ledger
        self._held_by: dict[str, list[str]] = defaultdict(list)
        for escrow_id, item in sorted(self._ledger.items.items()):
            self._held_by[item["user_id"]].append(escrow_id)

    def findings(self) -> Findings:
        """Answers that were never true, and pages that are not full though there was more."""
        checks: dict[str, Callable[[Call, Line, Line], Findings]] = {
            "user_balance": self._user_balance,
            "model_balance": self._model_balance,
            "escrow": self._escrow,
            "escrows": self._escrows,
            "statement": self._statement,
            "earnings": self._earnings,
        }
        for call in self._evidence.calls:
            for part, read in call.outcomes() if call.form == "read" else ():
                if "code" not in read:
                    check, request = checks[part["operation"]], part["request"]
                    yield from (f"{call.name} has read {what}" for what in check(call, request, read))
                    if any(read.get(name, value) != value for name, value in request.items()):
                        yield f"{call.name} has read {read}, asked for was {request}"
                    if read.get("next") and len(read["items"]) != PAGE:
                        yield f"{call.name} has read a page of {len(read['items'])}, and there was more"

    def _user_balance(self, call: Call, request: Line, balance: Line) -> Findings:
        if balance["total"] != balance["available"] + balance["escrow"]:
            yield f"{balance}, whose total is not the sum"
        yield from self._balance(call, f"user:{request['user_id']}", balance, "available", "escrow")

    def _model_balance(self, call: Call, request: Line, balance: Line) -> Findings:
        return self._balance(call, f"model:{request['model_id']}", balance, "earned")

    def _balance(self, call: Call, account: str, balance: Line, *names: str) -> Findings:
        wallet, version = self._evidence.timeline(account), balance["version"]
        state = wallet.states[version] if version < len(wallet.states) else None
        if state is None or any(balance[name] != state[name] for name in names):
            yield f"{balance}, the ledger has {state} at version {version}"
        elif state not in wallet.seen(call):
            yield f"version {version} of {account}, which was not so at that time"

    def _escrow(self, call: Call, request: Line, read: Line) -> Findings:
        """Held until it ended, and then as the ledger says."""
        item, end = self._ledger.items.get(read["escrow_id"], {}), self._ledger.ends.get(read["escrow_id"])
        if read["status"] == "held":
            item = item | HELD
            overtaken = end is not None and self._evidence.answered[end["transaction_id"]] < call.invoked
        else:
            maker = self._evidence.maker(end)
            overtaken = end is None or (maker is not None and maker.invoked > call.returned)
        if overtaken or read != item or not request.items() <= read.items():
            yield f"{read}, the ledger has {item}"

    def _escrows(self, call: Call, request: Line, read: Line) -> Findings:
        """A page of what is held: whatever surely was is in it, and all of it together is what was in escrow."""
        items, more, user_id = read["items"], read["next"], request["user_id"]
        for item in items:
            yield from self._escrow(call, {"user_id": user_id, "status": "held"}, item)
        after = decode_cursor("after", request["after"], str)[0] if request["after"] else ""
        ids = [item["escrow_id"] for item in items]
        if [after, *ids] != sorted({after, *ids}):
            yield f"after {after} in this order {ids}"
        known = self._held_by[user_id]
        until = bisect_right(known, ids[-1]) if more and ids else len(known)
        missing = {each for each in known[bisect_right(known, after) : until] if self._surely_held(each, call)}
        if missing - set(ids):
            yield f"a list of what {user_id} holds, without {missing - set(ids)}"
        held = sum(item["amount"] for item in items)
        escrow = {state["escrow"] for state in self._evidence.timeline(f"user:{user_id}").seen(call)}
        most = max(escrow, default=-1)
        if (more and held >= most) or held > most or not (more or after or held in escrow):
            yield f"{held} points held by {user_id}, in escrow were {escrow}"

    def _surely_held(self, escrow_id: str, call: Call) -> bool:
        """Whether the hold was answered before the call, and its end not asked for until it returned."""
        end = self._ledger.ends.get(escrow_id)
        maker = self._evidence.maker(end)
        hold = self._ledger.holds.get(escrow_id, {"transaction_id": "none"})
        begun = self._evidence.answered[hold["transaction_id"]] < call.invoked
        return begun and (end is None or (maker is not None and maker.invoked > call.returned))

    def _statement(self, call: Call, request: Line, read: Line) -> Findings:
        """A page, newest first: from the newest line of some moment, or from where the page before has ended."""
        items, wallet = read["items"], self._evidence.timeline(f"user:{request['user_id']}")
        lines = self._ledger.lines.get((wallet.account, "available"), [])
        until = bisect_right(lines, items[0]["wallet_version"], key=version_of) if items else 0
        there = {bisect_right(lines, state["version"], key=version_of) for state in wallet.seen(call)}
        if request["after"]:
            _, before, *_ = decode_cursor("after", request["after"], datetime, int, str, str)
            there = {bisect_left(lines, before, key=version_of)}
        first = max(0, until - len(items))
        if items != lines[first:until][::-1]:
            yield f"{items} of {wallet.account}, which the ledger does not have so"
        elif until not in there or bool(read["next"]) != (first > 0):
            yield f"the lines {first} to {until} of {wallet.account}, there were up to {there}"

    def _earnings(self, call: Call, request: Line, read: Line) -> Findings:
        items, wallet = read["items"], self._evidence.timeline(f"model:{request['model_id']}")
        shown, earned = sum(item["earned"] for item in items), {state["earned"] for state in wallet.seen(call)}
        if shown not in earned:
            yield f"{shown} as earned by {wallet.account}, it was {earned}"
        since, until = map(datetime.fromisoformat, (request["since"], request["until"]))
        first = datetime.combine(since.astimezone(NEPAL), time(), NEPAL)
        days = [first + timedelta(number) for number in range(1 + (until - first).days)]
        found = [(datetime.fromisoformat(item["start"]), datetime.fromisoformat(item["end"])) for item in items]
        if found != [(day, day + timedelta(1)) for day in days]:
            yield f"{found} as the days from {since} to {until}"

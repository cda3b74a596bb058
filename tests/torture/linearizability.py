"""Is there one order of the calls, each somewhere between its invocation and its answer, that explains every answer?

The condition is linearizability (Herlihy and Wing, 1990: Linearizability: a correctness condition for concurrent
objects), the one object being all wallets together, as the reference model has them. The search is that of Wing and
Gong (1993: Testing and verifying concurrent objects): of the calls that may come next, take one that the model answers
as it was answered, and go back where nothing can follow; with the refinement of Lowe (2017: Testing for
linearizability): what has led nowhere once, as a set of calls and the state after them, is not searched again.

Two things keep it nearly straight. A call that may come next, and by its answer changed nothing, is taken for good as
soon as the model gives that answer: in any order of the rest it could be moved to this place. And unanswered calls are
tried only where no other leads on, the fewest first, each only if it changes something and cannot as well come later.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from support.reference import EMPTY, Fields, Key, Reference, Refused, claim_of, owner_of

LIMIT = 50_000  # about a second; reached where ten or more calls are not answered
MADE = ("transaction_id", "escrow_id", "timestamp")
ITEM = ("status", "settled_amount", "refunded_amount", "amount")
READS = ("user_balance", "model_balance", "escrow")
# Those of a key, or of a claim that several keys may have.
Made = Key | tuple[str, str]
NOBODYS = ("", "")
_NOWHERE = object()


class Undecided(Exception):  # noqa: N818 - an answer, not a mistake
    """The search was ended by its limit: the history may or may not be linearizable."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One operation that the reference model knows, or one of ``READS``.

    ``request`` is the request; of a read, a mapping of its arguments. ``outcome`` has the fields of the response, all
    or some (``{}``: it succeeded, no more is known), or ``code`` and perhaps ``details`` of the refusal; ``None``: not
    known.
    """

    operation: str
    request: Any
    authorized: bool = True
    outcome: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One or more operations, carried out in one step and in this order.

    ``returned`` is ``None`` where no answer came, or one that says nothing: then it takes effect at any time after
    its invocation, or never. What is ``undone`` was answered in one step as well, and then taken back: a caller's
    transaction that was rolled back, or an atomic batch up to the part that was refused (those before it: ``{}``).
    """

    worker: str
    invoked: float
    returned: float | None
    parts: tuple[Part, ...]
    undone: bool = False


def explain(calls: Sequence[Call], *, limit: int = LIMIT) -> str | None:
    """``None`` if the calls are linearizable, beginning with empty wallets; else an account of how far one comes.

    Raises ``Undecided`` after ``limit`` attempts to let a call follow. Times need one clock; a call that returned at
    the same time at which another was invoked is concurrent with it.
    """
    search = _Search(_steps(calls), limit)
    return None if search.succeeds() else search.account()


@dataclass(frozen=True, slots=True)
class _Step:
    """A call as the search needs it: each part with the ids that it makes, should it be the first of its key.

    It is ``loud`` unless its answer says that it changed nothing.
    """

    call: Call
    parts: tuple[tuple[Part, Fields], ...]
    deadline: float
    loud: bool


def _steps(calls: Sequence[Call]) -> list[_Step]:
    """The calls that say or may have done anything, by the time of their invocation."""
    made: dict[Made, Fields] = {}
    others: set[Made] = set()
    for call in calls:
        for part in _lasting(call):
            made.setdefault(_makes(part), {}).update(_made(part))
            if part.outcome and part.outcome.get("replayed") is False:
                others.add(_makes(part))
    steps = []
    for number, call in enumerate(sorted(calls, key=lambda call: call.invoked)):
        parts = tuple(
            (part, dict.fromkeys(MADE, f"made by call {number}.{place}") | made.get(_makes(part), {}) | _made(part))
            for place, part in enumerate(call.parts)
            if _says_or_does_anything(part)
        )
        if call.returned is None and others.issuperset(_makes(part) for part, _ in parts):
            continue  # an answered call made all that this one asked for
        if parts:
            deadline = inf if call.returned is None else call.returned
            loud = not call.undone and any(map(_may_change, call.parts))
            steps.append(_Step(call, parts, deadline, loud))
    return steps


def _lasting(call: Call) -> list[Part]:
    """The parts whose ids were not made in vain, as are those of a call that was, or may have been, taken back."""
    doubtful = call.undone or call.returned is None
    vain = {_makes(part) for part in call.parts if doubtful and not (part.outcome or {}).get("replayed")}
    return [part for part in call.parts if _makes(part) not in vain]


def _says_or_does_anything(part: Part) -> bool:
    if part.outcome is None:
        return part.operation not in READS
    return part.outcome.get("code") != "optimistic_lock"


def _may_change(part: Part) -> bool:
    outcome = part.outcome or {}
    return part.operation not in READS and "code" not in outcome and not outcome.get("replayed")


def _key(part: Part) -> Key:
    if part.operation in READS:
        return ("", part.operation, "")
    return owner_of(part.request), part.operation, part.request.idempotency_key


def _makes(part: Part) -> Made:
    """What only one can make: that of a key, or the deposit that several keys may claim."""
    claim = None if part.operation in READS else claim_of(part.operation, part.request)
    return claim or _key(part)


def _made(part: Part) -> Fields:
    outcome = part.outcome or {}
    return {name: outcome[name] for name in MADE if name in outcome}


@dataclass(frozen=True, slots=True)
class _Node:
    """Calls in an order, their set as a number with their bits, and the state after them."""

    order: tuple[int, ...]
    done: int
    state: Reference


class _Search:
    """Depth first, on a stack of its own, from one answered call to the next."""

    def __init__(self, steps: list[_Step], limit: int) -> None:
        self.steps = steps
        self.limit = limit
        self.tried = 0
        self.required = sum(1 << number for number, step in enumerate(steps) if step.deadline < inf)
        self.uses = Counter(each for step in steps for part, _ in step.parts for each in {_key(part), _makes(part)})
        self.dead: dict[int, set[Hashable]] = defaultdict(set)
        self.longest = _Node((), 0, Reference())

    def succeeds(self) -> bool:
        node = self.longest
        stack = [(node, self._successors(node))]
        while self.required & ~node.done:
            if (found := next(stack[-1][1], None)) is None:
                node, _ = stack.pop()
                self.dead[node.done].add(_frozen(node.state))
                if not stack:
                    return False
            elif not (found.done in self.dead and _frozen(found.state) in self.dead[found.done]):
                node = found
                stack.append((node, self._successors(node)))
                self.longest = max(self.longest, node, key=lambda node: (node.done & self.required).bit_count())
        return True

    def _successors(self, node: _Node) -> Iterator[_Node]:
        """The nodes that are one answered call further, with as few unanswered ones before it as possible."""
        answered, unanswered = self._candidates(node.done)
        for run in self._runs(node, unanswered):
            for number in answered:
                found = self._extended(run, number)
                if found is None or self._too_early(node, found):
                    continue
                yield found
                if self.steps[number].loud:
                    continue
                if run is node:
                    return  # it changes nothing: if this leads nowhere, nothing does
                break

    def _candidates(self, done: int) -> tuple[list[int], list[int]]:
        """The calls before which none of the others was answered: those with an answer, and those without.

        What changes nothing is first, then what was answered first.
        """
        found, bound = [], inf
        for number, step in enumerate(self.steps):
            if step.call.invoked > bound:
                break
            if not done >> number & 1:
                found.append(number)
                bound = min(bound, step.deadline)
        found.sort(key=lambda number: (self.steps[number].loud, self.steps[number].deadline))
        answered = [number for number in found if self.required >> number & 1]
        return answered, [number for number in found if not self.required >> number & 1]

    def _runs(self, node: _Node, unanswered: list[int]) -> Iterator[_Node]:
        """The node, and those with one, two … unanswered calls more, each of which changes something."""
        level = [node]
        while level:
            yield from level
            longer: dict[Hashable, _Node] = {}
            for run, number in itertools.product(level, unanswered):
                found = None if run.done >> number & 1 else self._extended(run, number)
                if found is not None and found.state is not run.state:
                    longer.setdefault((found.done, _frozen(found.state)), found)
            level = list(longer.values())

    def _too_early(self, node: _Node, found: _Node) -> bool:
        """Whether one of the unanswered calls between the nodes might as well come last."""
        path = found.order[len(node.order) :]
        for place in range(len(path) - 1):
            other: _Node | None = node
            for number in (*path[:place], *path[place + 1 :], path[place]):
                other = other and self._extended(other, number)
            if other and _frozen(other.state) == _frozen(found.state):
                return True
        return False

    def _extended(self, node: _Node, number: int) -> _Node | None:
        """The node with one call more, the state the same if it changes nothing; ``None`` if its answer is another."""
        self.tried += 1
        if self.tried > self.limit:
            raise Undecided(f"{len(self.steps)} calls, undecided after {self.limit} attempts")
        step, state = self.steps[number], node.state.copy()
        for part, made in step.parts:
            if not _fits(part.outcome, _answer(state, part, made)):
                return None
        if step.call.undone or len(state.answers) == len(node.state.answers):
            state = node.state
        for part, _ in step.parts:
            # What nobody will ask for again makes no difference between states.
            if state is not node.state and self.uses[_key(part)] == 1:
                state.answers.pop(_key(part), None)
            if state is not node.state and self.uses[_makes(part)] == 1:
                state.claims.pop(claim_of(part.operation, part.request) or NOBODYS, None)
        return _Node((*node.order, number), node.done | 1 << number, state)

    def account(self) -> str:
        """The longest order that was found, the calls that could have followed, and what they would have answered."""
        answered, unanswered = self._candidates(self.longest.done)
        fitting = (self.longest.done & self.required).bit_count()
        return "\n".join(
            [
                f"not linearizable: {fitting} of {self.required.bit_count()} answered calls fit into an order:",
                *(f"  {_shown(self.steps[number])}" for number in self.longest.order),
                "and none of these can follow:",
                *(self._refuted(self.steps[number]) for number in answered),
                *(["nor do these help, which were not answered:"] if unanswered else []),
                *(f"  {_shown(self.steps[number])}" for number in unanswered),
            ]
        )

    def _refuted(self, step: _Step) -> str:
        state = self.longest.state.copy()
        answers = [_answer(state, part, made) for part, made in step.parts]
        return "\n".join([f"  {_shown(step)}", *(f"      here: {answer}" for answer in answers)])


def _answer(state: Reference, part: Part, made: Fields) -> Fields:
    try:
        if part.operation in READS:
            return _read(state, part.operation, part.request)
        return state.send(part.operation, part.request, made, part.authorized)
    except Refused as refusal:
        code, details = refusal.args
        return {"code": code, "details": details}


def _read(state: Reference, operation: str, asked: Mapping[str, Any]) -> Fields:
    if operation != "escrow":
        kind = operation.removesuffix("_balance")
        return state.wallets.get((f"{kind}:{asked[f'{kind}_id']}", asked.get("currency") or "points"), EMPTY)
    item = state.items.get(asked["escrow_id"])
    if item is None or asked.get("user_id") not in (None, item["user_id"]):
        raise Refused("escrow_not_found", escrow_id=asked["escrow_id"])
    return {name: item[name] for name in ITEM}


def _fits(outcome: Mapping[str, Any] | None, expected: Fields) -> bool:
    """Whether all that is known of the answer is as expected."""
    if outcome is None:
        return True
    if "code" in outcome or "code" in expected:
        given = outcome.get("details")
        return outcome.get("code") == expected.get("code") and (
            given is None
            or all(_plain(given.get(name)) == _plain(value) for name, value in expected["details"].items())
        )
    return all(expected.get(name, _NOWHERE) == value for name, value in outcome.items())


def _plain(value: Any) -> Any:
    # A journal in JSON has lists for tuples.
    return list(value) if isinstance(value, tuple) else value


def _frozen(state: Reference) -> Hashable:
    """All of the state on which later answers depend."""
    return (
        frozenset((owner, *wallet.values()) for owner, wallet in state.wallets.items() if wallet["version"]),
        frozenset((escrow_id, *(item[name] for name in ITEM)) for escrow_id, item in state.items.items()),
        frozenset((key, repr(answer)) for key, answer in (state.answers | state.claims).items()),
    )


def _shown(step: _Step) -> str:
    call = step.call
    times = f"{call.invoked:.6f} to {'?' if call.returned is None else f'{call.returned:.6f}'}"
    return f"{call.worker}, {times}{', undone' if call.undone else ''}: " + "; ".join(
        f"{part.operation}({_asked(part)}) -> {'?' if part.outcome is None else dict(part.outcome)}"
        for part, _ in step.parts
    )


def _asked(part: Part) -> str:
    given = part.request if part.operation in READS else vars(part.request)
    left_out = ("request_id", "reason", "feature_type")
    said = [f"{name}={value!r}" for name, value in given.items() if value is not None and name not in left_out]
    return ", ".join(said if part.authorized else [*said, "unauthorized"])

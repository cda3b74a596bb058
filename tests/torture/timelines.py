"""Which versions of a wallet a call can have seen: by the times of the calls alone, no clock but the clients'."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from .history import Call, Ledger
from .journal import Line


@dataclass
class Timeline:
    """The versions of a wallet, from 0 on.

    ``begun``: the latest time at which anything up to this version was asked for; ``ended``: the earliest time
    at which anything after it was answered. Neither can decrease. ``within``: the call that has made this version
    and the next one, and has committed both at once.
    """

    account: str
    states: list[Line]
    begun: list[float]
    ended: list[float]
    within: list[str | None]

    def seen(self, call: Call) -> list[Line]:
        """The states that may have been the wallet's while the call was under way."""
        # What is within a call no other one sees.
        versions = range(bisect_left(self.ended, call.invoked), bisect_right(self.begun, call.returned))
        return [self.states[version] for version in versions if self.within[version] in (None, call.name)]

    def contradictions(self, answered: Mapping[str | None, float]) -> Iterator[str]:
        """Versions that were answered before an earlier one was asked for."""
        for version in range(1, len(self.states)):
            if answered[self.states[version]["transaction_id"]] < self.begun[version - 1]:
                yield f"{self.account}: version {version} was answered before an earlier one was asked for"


class Evidence:
    """The calls and the ledger, and what follows from both about when something was so."""

    def __init__(self, calls: Sequence[Call], ledger: Ledger) -> None:
        self.calls = calls
        self.ledger = ledger
        self.by_name = {call.name: call for call in calls}
        # The time of the first answer that told of a transaction; never, for one that nobody was told of.
        self.answered: dict[str | None, float] = defaultdict(lambda: math.inf)
        for call in calls:
            if call.committed:
                for _, outcome in call.successes():
                    told = outcome["transaction_id"]
                    self.answered[told] = min(self.answered[told], call.returned)
        self.timeline = cache(self._timeline)

    def maker(self, transaction: Line | None) -> Call | None:
        """The call that has made a transaction, if there is one and a client has asked for it."""
        return self.by_name.get(transaction["request_id"]) if transaction else None

    def _timeline(self, account: str) -> Timeline:
        """The timeline of a wallet, also of one that is not there."""
        states = self.ledger.states_of(account)
        makers = [self.maker(self.ledger.transactions.get(state["transaction_id"])) for state in states]
        begun, ended = [-math.inf], [math.inf]
        for maker in makers[1:]:
            begun.append(max(begun[-1], maker.invoked if maker else -math.inf))
        for state in reversed(states[1:]):
            ended.append(min(ended[-1], self.answered[state["transaction_id"]]))
        within = [one.name if one and one is next_ and one.whole else None for one, next_ in pairwise([*makers, None])]
        return Timeline(account, states, begun, ended[::-1], within)

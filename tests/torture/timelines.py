"""Per wallet, which versions a call can have seen: by the times of the calls alone, no clock but the clients'."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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

    def contradictions(self, answered: Mapping[str, float]) -> Iterator[str]:
        """Versions that were answered before an earlier one was asked for."""
        for version in range(1, len(self.states)):
            if answered[self.states[version]["transaction_id"]] < self.begun[version - 1]:
                yield f"{self.account}: version {version} was answered before an earlier one was asked for"


def answered_at(calls: Sequence[Call]) -> Mapping[str, float]:
    """The time of the first answer that told of each transaction; never, for one that nobody was told of."""
    answered: dict[str, float] = defaultdict(lambda: math.inf)
    for call in calls:
        if call.committed:
            for _, outcome in call.successes():
                answered[outcome["transaction_id"]] = min(answered[outcome["transaction_id"]], call.returned)
    return answered


def timeline(account: str, ledger: Ledger, calls: Mapping[str, Call], answered: Mapping[str, float]) -> Timeline:
    """The timeline of a wallet, also of one that is not there."""
    states = ledger.states_of(account)
    makers = [calls.get(ledger.transactions.get(state["transaction_id"], {}).get("request_id", "")) for state in states]
    begun, ended = [-math.inf], [math.inf]
    for maker in makers[1:]:
        begun.append(max(begun[-1], maker.invoked if maker else -math.inf))
    for state in reversed(states[1:]):
        ended.append(min(ended[-1], answered[state["transaction_id"]]))
    within = [one.name if one and one is next_ and one.whole else None for one, next_ in pairwise([*makers, None])]
    return Timeline(account, states, begun, ended[::-1], within)

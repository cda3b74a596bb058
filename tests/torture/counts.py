"""How much a round was: calls, answers, faults, lives."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from .history import Call
from .journal import Line, lines
from .worker import Round


def count(round_: Round, calls: Sequence[Call]) -> Counter[str]:
    """Everything that is worth a line in the report."""
    counts: Counter[str] = Counter()
    for call in calls:
        counts.update(_of_call(call))
    for path in round_.folder.glob("faults*.log"):
        counts.update(f"fault {json.loads(line)['fault']}" for line in path.read_text().splitlines())
    for client in round_.everybody():
        for line in lines(round_.folder, client):
            if "receiver" in line:
                counts[f"fault receiver_{line['receiver']}"] += 1
            if "settings" in line:
                counts.update(f"life with {each}" for each in _remarkable(line["settings"]))
    return counts


def _of_call(call: Call) -> Counter[str]:
    refused = [outcome for _, outcome in call.outcomes() if "code" in outcome]
    causes = [each["details"]["cause"] for each in refused if each["code"] == "storage_unavailable"]
    return (
        Counter(
            {
                "calls": 1,
                "calls sent again": call.asked["resent"],
                "calls never answered": call.answer is None,
                "operations": len(call.asked["parts"]),
                "acknowledged": sum(1 for _ in call.successes()) if call.committed else 0,
                "events": len(call.events),
                "keys with another payload": sum(part["mutation"] is not None for part in call.asked["parts"]),
            }
        )
        + Counter(f"answer {each['code']}" for each in refused)
        + Counter(f"storage_unavailable {cause}" for cause in causes)
        + Counter(f"read {part['operation']}" for part in call.asked["parts"] if call.form == "read")
        + Counter(f"done {part['operation']}" for part, outcome in call.successes() if call.committed and new(outcome))
    )


def new(outcome: Line) -> bool:
    """Whether it was answered as the first of its key."""
    return not outcome["replayed"]


def _remarkable(settings: Line) -> Iterator[str]:
    if settings["clock_shift_s"]:
        yield "a wrong clock"
    if settings["small_disk"]:
        yield "a full disk"
    if settings["statement_timeout_ms"]:
        yield "a statement timeout"
    if settings["isolation_level"]:
        yield settings["isolation_level"]

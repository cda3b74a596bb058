"""Python's own time of a hold, a settlement and a batch: the server has answered once, and is not asked again.

A single operation's answer is libpq's, so that its parameters are still made and its row is still read. A batch is the
same one again and again, its statements answered by the results of the first time, past SQLAlchemy's execution.
"""

import cProfile
import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

from points_platform.core import Database
from points_platform.core.statement import Statement

SINGLE = 500  # operations that are timed together
SHOWN = 40
PACKAGE = f"points_platform{os.sep}"

# By kind: what makes the next work ready, since a key that was used would be answered from the cache; and its items.
_works: dict[str, tuple[Callable[[int], Callable[[], object]], int]] = {}
_numbers = itertools.count()


def begin(contestant: Any, *, single: list[Any], batch: list[Any]) -> None:
    """Ask the server for all that it will be asked for, once; from here on everything is answered from memory."""
    _answer_statements_from_memory()
    hold, *others = single
    held = contestant.hold(hold)
    contestant.settle(*contestant.permitted([held]))

    def holds(number: int) -> Callable[[], object]:
        return partial(_each, contestant.hold, [each._replace(key=f"{each.key}-{number}") for each in others])

    def settlements(number: int) -> Callable[[], object]:
        tasks = [each._replace(key=f"{each.key}-{number}", escrow_id=held.escrow_id) for each in others]
        return partial(_each, contestant.settle, contestant.permitted(tasks))

    holding: list[Any] = []
    with _remembering(holding):
        to_settle = contestant.permitted(contestant.hold_together(batch))
    settling: list[Any] = []
    with _remembering(settling):
        contestant.settle_together(to_settle)
    # The same batch each time: it is not remembered, and its answers are of its own keys.
    hold_many = partial(_with_answers, holding, partial(contestant.hold_together, batch))
    settle_many = partial(_with_answers, settling, partial(contestant.settle_together, to_settle))
    _works["hold"] = holds, SINGLE
    _works["settle"] = settlements, SINGLE
    _works["hold_many"] = (lambda number: hold_many), len(batch)
    _works["settle_many"] = (lambda number: settle_many), len(batch)


def seconds_per_item(kind: str) -> float:
    """Of this thread's processor time, so that others on the machine count little."""
    ready, count = _works[kind]
    work = ready(next(_numbers))
    gc.collect()
    gc.freeze()
    before = time.thread_time()
    work()
    taken = time.thread_time() - before
    gc.unfreeze()
    return taken / count


def functions(kind: str, rounds: int) -> list[tuple[str, float, float, float]]:
    """The functions that take longest themselves: name, calls, own and whole seconds per item, each the rounds' median.

    The profiler makes what calls much look dearer than it is. No garbage is collected meanwhile: it would be put on
    whoever is at work by then.
    """
    ready, count = _works[kind]
    found: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(rounds):
        work, profile = ready(next(_numbers)), cProfile.Profile()
        gc.collect()
        gc.disable()
        profile.enable()
        work()
        profile.disable()
        gc.enable()
        for each in profile.getstats():
            figures = each.callcount, each.inlinetime, each.totaltime
            found.setdefault(_name(each.code), []).append(tuple(figure / count for figure in figures))
    medians = [(name, *map(statistics.median, zip(*figures, strict=True))) for name, figures in found.items()]
    return sorted(medians, key=lambda each: each[2], reverse=True)[:SHOWN]


def _each(operation: Callable[[Any], object], tasks: list[Any]) -> None:
    for task in tasks:
        operation(task)


def _name(code: CodeType | str) -> str:
    if isinstance(code, str):
        return code.strip("<>")
    if code.co_filename == "<string>":  # of a data class, known by its fields
        fields = ", ".join(code.co_varnames[1 : min(4, code.co_argcount + code.co_kwonlyargcount)])
        return f"{code.co_name}({fields}, …)"
    file = code.co_filename.rpartition(PACKAGE)[2].rpartition("site-packages" + os.sep)[2]
    return f"{file}:{code.co_firstlineno} {code.co_qualname}"


def _answer_statements_from_memory() -> None:
    send: Any = Statement._send
    answers: dict[str, Any] = {}

    def remembered(statement: Statement, *arguments: Any) -> Any:
        if statement.sql not in answers:
            answers[statement.sql] = send(statement, *arguments)
        return answers[statement.sql]

    Statement._send = remembered  # type: ignore


class Remembering:
    """A connection whose answers are kept, in their order."""

    def __init__(self, connection: Any, answers: list[Any]) -> None:
        self.dialect = connection.dialect
        self._connection = connection
        self._answers = answers

    def execute(self, *asked: Any) -> Any:
        result = self._connection.execute(*asked)
        self._answers.append(result.freeze() if result.returns_rows else lambda: result)
        return self._answers[-1]()


class Answering:
    """A connection that gives these answers, in their order."""

    def __init__(self, dialect: Any, answers: list[Any]) -> None:
        self.dialect = dialect
        self._answers = iter(answers)

    def execute(self, *asked: Any) -> Any:
        return next(self._answers)()


@contextmanager
def _remembering(answers: list[Any]) -> Iterator[None]:
    begin = Database._begin

    @contextmanager
    def remembering(database: Database, **options: Any) -> Iterator[Any]:
        with begin(database, **options) as connection:
            yield Remembering(connection, answers)

    with _begun_by(remembering):
        yield


def _with_answers(answers: list[Any], work: Callable[[], object]) -> None:
    @contextmanager
    def answering(database: Database, **options: Any) -> Iterator[Any]:
        yield Answering(database.engine.dialect, answers)

    with _begun_by(answering):
        work()


@contextmanager
def _begun_by(begin: Any) -> Iterator[None]:
    before = Database._begin
    Database._begin = begin  # type: ignore[method-assign]
    try:
        yield
    finally:
        Database._begin = before  # type: ignore[method-assign]

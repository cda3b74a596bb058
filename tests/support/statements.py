"""The statements that go through an engine: seen, and acted upon at a chosen one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from .world import World


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is sent to the database inside the block."""
    with before_each(engine, "") as seen:
        yield seen


@contextmanager
def once_before(engine: Engine, fragment: str, act: Callable[[], object]) -> Iterator[list[str]]:
    """Act right before the first statement that contains the fragment; yields the statements so far."""
    with before_each(engine, fragment, lambda connection: act()) as seen:
        yield seen


@contextmanager
def before_each(engine: Engine, fragment: str, *acts: Callable[[Connection], object]) -> Iterator[list[str]]:
    """Before the first statement with that text do the first act, before the next one the second, and so on."""
    seen: list[str] = []
    left = list(acts)

    def watch(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if fragment in statement and left:
            left.pop(0)(connection)
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", watch)
    try:
        yield seen
        assert not left, f"no statement has {fragment!r}"
    finally:
        event.remove(engine, "before_cursor_execute", watch)


def execute(world: World, statement: str, **values: Any) -> None:
    """A statement of the test's own, past the module, in a transaction of its own."""
    with world.database.engine.begin() as connection:
        connection.execute(text(statement), values)

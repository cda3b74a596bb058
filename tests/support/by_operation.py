"""What is said of each operation by hand, and what says which one was forgotten."""

from collections.abc import Iterable
from typing import Any, TypeVar

from points_platform.wallets.operations import OPERATIONS

Key = TypeVar("Key")
Value = TypeVar("Value")


class ByOperation(dict[Key, Value]):
    """By name or by type of request. One that is not there fails the test that asks, by its name and the table's."""

    def __init__(self, table: str, entries: dict[Key, Value]) -> None:
        super().__init__(entries)
        self._table = table

    def __missing__(self, key: Key) -> Value:
        name = key.__name__ if isinstance(key, type) else key
        raise AssertionError(f"{self._table} has nothing for {name}")


def assert_complete(where: str, named: Iterable[Any], wanted: Iterable[Any] | None = None) -> None:
    """All operations that are declared are named there, or all of those that are wanted, and nothing else is."""
    names = {operation.name for operation in OPERATIONS} if wanted is None else set(wanted)
    missing, unknown = names - (said := set(named)), said - names
    assert not missing, f"{where} says nothing of {', '.join(sorted(map(str, missing)))}"
    assert not unknown, f"{where} speaks of {', '.join(sorted(map(str, unknown)))}, which is not among its operations"

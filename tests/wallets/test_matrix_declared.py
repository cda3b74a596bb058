"""An operation that is declared comes with what says what is right: without it, something here fails."""

import ast
import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from points_platform.core import WalletError, refusals
from points_platform.events import EVENT_TYPES
from points_platform.ledger.accounts import CHART, InHold
from points_platform.wallets import EscrowStatus, WalletService
from points_platform.wallets.operations import OPERATIONS
from support import recount, workers
from support.by_operation import ByOperation, assert_complete
from support.examples import EXAMPLES, another
from support.world import METHODS, World

from . import by_hand
from .by_hand.refusals import LADDERS, ORDER
from .by_hand.rows import Case
from .checks import TABLES

BY_HAND = by_hand.BY_HAND
DECLARED = [operation.name for operation in OPERATIONS]
declared = pytest.mark.parametrize("operation", OPERATIONS, ids=DECLARED)
FOLDER = Path(by_hand.__file__).parent
# What is asked of an operation by hand, and who knows it.
KNOWN: dict[str, Iterable[str]] = {
    "rows by hand": BY_HAND,
    "refusals in their order": LADDERS,
    "an example": EXAMPLES,
    "the ledger's chart": CHART,
    "what is sent at once": workers.OPERATIONS,
    "the recount": {**recount.MOVES, **recount.TOUCHES},
}
ALONE = {"open", "partial_settle"}
# Of one call; a method's docstring names them last.
OF_ANY = {"OptimisticLockError", "StorageUnavailableError"}


def unlike(names: list[str]) -> dict[str, set[str]]:
    """Where something is missing, or too much: the names that only one side has."""
    differences = {what: set(known) ^ set(names) for what, known in KNOWN.items()}
    return {what: difference for what, difference in differences.items() if difference}


def test_every_operation_has_all_that_is_written_by_hand_and_nothing_else_has() -> None:
    assert unlike(DECLARED) == {}
    assert len(set(DECLARED)) == len(DECLARED)


def test_an_operation_without_any_of_it_would_be_named() -> None:
    assert unlike([*DECLARED, "lottery"]) == {what: {"lottery"} for what in KNOWN}
    assert unlike([name for name in DECLARED if name != "spend"]) == {what: {"spend"} for what in KNOWN}


def test_what_a_table_or_a_list_lacks_is_named() -> None:
    with pytest.raises(AssertionError, match=r"EXAMPLES in tests/support/examples\.py has nothing for lottery"):
        EXAMPLES["lottery"]
    with pytest.raises(AssertionError, match="methods has nothing for InHold"):
        ByOperation[type, str]("methods", {})[InHold]
    assert_complete("everything", DECLARED)
    with pytest.raises(AssertionError, match=r"most says nothing of open, spend$"):
        assert_complete("most", {*DECLARED} - {"spend", "open"})
    with pytest.raises(AssertionError, match="more speaks of lottery"):
        assert_complete("more", [*DECLARED, "lottery"])


def test_every_operation_has_a_method_and_all_but_these_one_for_many() -> None:
    assert {kind for kind in METHODS if METHODS[kind][1]} == {o.request for o in OPERATIONS if o.authorization}
    assert set(METHODS) == {operation.request for operation in OPERATIONS}
    assert {name for name in DECLARED if not hasattr(WalletService, f"{name}_many")} == ALONE


@declared
def test_the_declaration_and_the_ledgers_chart_say_the_same(operation: Any) -> None:
    law = CHART[operation.name]
    assert _default(operation.event, "event_type") == law.announced
    assert (operation.authorization is not None) is law.authorized
    ended = None if operation.leaves is None else InHold.ENDS
    assert law.hold is (InHold.BEGINS if operation.leaves is EscrowStatus.HELD else ended)


def _default(cls: Any, name: str) -> Any:
    [default] = [each.default for each in fields(cls) if each.name == name]
    assert default is not MISSING
    return default


def test_each_type_of_event_announces_one_operation() -> None:
    assert sorted(EVENT_TYPES) == sorted(_default(operation.event, "event_type") for operation in OPERATIONS)
    for what in ("request", "response", "event", "decide", "told"):
        assert len({getattr(operation, what) for operation in OPERATIONS}) == len(OPERATIONS), what


def test_the_order_of_refusals_is_that_of_the_errors() -> None:
    classes = [value for value in vars(refusals).values() if isinstance(value, type) and value is not WalletError]
    assert ("invalid_request", *(kind.code for kind in classes if issubclass(kind, WalletError))) == ORDER


@pytest.mark.parametrize("name", LADDERS)
def test_a_ladder_has_every_refusal_of_the_methods_docstring_in_its_order(name: str) -> None:
    codes = list(dict.fromkeys(rung.code for rung in LADDERS[name].rungs))
    assert codes == sorted(codes, key=ORDER.index)
    assert codes == [_code(error) for error in _documented(name)]


def _documented(name: str) -> list[str]:
    """The refusals that the docstring of the operation's method lists."""
    [method] = [METHODS[operation.request][0] for operation in OPERATIONS if operation.name == name]
    text = inspect.getdoc(getattr(WalletService, method)) or ""
    named = [error for error in re.findall(r"\b\w+Error\b", text) if error not in OF_ANY]
    if "Raises what ``settle_escrow`` raises" in text:
        return [error for error in _documented("settle") if error not in named]
    return named


def _code(error: str) -> str:
    [code] = [kind.code for kind in WalletError.__subclasses__() if kind.__name__ == error]
    return code


@declared
def test_an_example_gives_every_field_a_value_of_which_there_is_another(world: World, operation: Any) -> None:
    request = EXAMPLES[operation.name](world)
    assert type(request) is operation.request
    for each in fields(request):
        value = getattr(request, each.name)
        assert (value is None) is (each.name == "currency"), each.name
        assert repr(another(value)) != repr(value)


# ── the rows written by hand ──


@pytest.mark.parametrize("name", BY_HAND)
def test_rows_by_hand_are_whole_rows_and_have_an_answer_and_an_event(name: str) -> None:
    assert (FOLDER / f"{name}.py").exists()
    cases: list[Case] = list(BY_HAND[name])
    assert len({case.name for case in cases}) == len(cases)
    assert any(case.sent[0].event for case in cases)
    for case in cases:
        for rows in (case.state, case.rows):
            for table, mine in rows.items():
                columns = {column.name for column in TABLES[table].c}
                assert [set(row) for row in mine] == [columns] * len(mine), (case.name, table)


def test_what_is_written_by_hand_imports_nothing_of_the_package() -> None:
    allowed = {"collections.abc", "dataclasses", "datetime", "typing", "rows", ""}
    for file in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not isinstance(node, ast.Import), file.name
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "") in allowed, (file.name, node.module)

"""The rules of the house, kept by tests: who may import whom, who commits, what is public, what is packaged."""

import ast
import dataclasses
import importlib
import inspect
import platform
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from points_platform import aio, cli, core, events, ledger, migrations, queue, testing, wallets
from points_platform.core import errors, refusals
from points_platform.ledger.accounts import CHART
from points_platform.wallets.operations import OPERATIONS
from support.by_operation import assert_complete

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "platform"
# Each imports from those before it and from itself.
LAYERS = ("migrations", "core", "ledger", "events", "wallets", "queue", "aio", "testing", "cli")
PUBLIC = (migrations, core, ledger, events, wallets, queue, aio, testing, cli)
MODULES = sorted(SOURCE.rglob("*.py"))
TREES = {module.relative_to(SOURCE).as_posix(): ast.parse(module.read_text()) for module in MODULES}

LONGEST_FUNCTION = 40
LONGEST_MODULE = 400
TRANSACTION_CALLS = {"begin", "begin_nested", "begin_twophase", "commit", "rollback", "prepare"}
STATEMENT_CALLS = {"execute", "executemany", "exec_driver_sql", "scalar", "scalars", "cursor"}
SQL_FILES = {
    "store.py",
    "log_store.py",
    "at_once.py",
    "locked.py",
    "reads.py",
    "expected.py",
    "rows.py",
    "statement.py",
    "books.py",
    "verify.py",
    "rebuild.py",
    "clock.py",
    "connections.py",
    "database.py",
    "engines.py",
    "schema.py",
    "rights.py",
    "sessions.py",
    "models.py",
    "revisions.py",
    "promised.py",
}
SQL_NAMES = {"select", "insert", "update", "delete", "text", "union", "union_all", "DDL"}


def calls(tree: ast.AST) -> Iterator[str]:
    """The name of everything that is called, without what it is called on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node.func.id


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Module and name of every import in a module, at any depth; relative ones made absolute."""
    package = ["points_platform", *module.split("/")[:-1]]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            yield from ((source, alias.name) for alias in node.names)


# ── the direction of imports ──


def test_every_module_belongs_to_a_layer_and_none_is_loose() -> None:
    assert {module.split("/")[0] for module in TREES} <= set(LAYERS)
    assert all("/" in module for module in TREES), "a loose module would have no types for users"
    assert {folder.name for folder in SOURCE.iterdir() if (folder / "py.typed").exists()} == set(LAYERS)
    assert not (SOURCE / "__init__.py").exists(), "it would shadow the standard library's platform"
    assert platform.python_version(), "the standard library's platform is shadowed"


def test_imports_run_one_way() -> None:
    against = []
    for module in TREES:
        allowed = LAYERS[: LAYERS.index(module.split("/")[0]) + 1]
        for source, name in imports(module):
            parts = [*source.split("."), name]
            assert parts[0] != "platform", f"{module} imports by the folder's name"
            if parts[0] == "points_platform" and parts[1] not in allowed:
                against.append(f"{module} imports {source}")
    assert against == []


def test_only_the_list_of_all_tables_imports_by_name() -> None:
    """A host's autogenerate wants them all; what makes them are literal statements at the bottom of the house."""
    dynamic = {
        (module, name)
        for module, tree in TREES.items()
        for name in calls(tree)
        if name in {"import_module", "__import__", "exec", "eval", "spec_from_file_location", "find_loader"}
    }
    assert dynamic == {("migrations/revisions.py", "import_module"), ("migrations/given.py", "import_module")}
    (metadata,) = (
        node
        for node in ast.walk(TREES["migrations/revisions.py"])
        if isinstance(node, ast.FunctionDef) and node.name == "metadata"
    )
    assert "import_module" in set(calls(metadata))


def test_the_core_can_be_imported_without_the_packages_above() -> None:
    program = "import sys, points_platform.core; print(*(m for m in sys.modules if m.startswith('points_platform.')))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {module.split(".")[1] for module in ran.stdout.split()} == {"core", "migrations"}


def test_no_terminal_package_is_imported_outside_the_command_line() -> None:
    extras = {"typer", "rich", "click"}
    found = {module for module in TREES for source, _ in imports(module) if source.split(".")[0] in extras}
    assert {module.split("/")[0] for module in found} <= {"cli"}


def test_pytest_is_imported_by_the_fixtures_alone() -> None:
    found = {
        module for module in TREES for source, _ in imports(module) if source.split(".")[0] in {"pytest", "_pytest"}
    }
    assert found == {"testing/fixtures.py"}


# ── who commits, who speaks SQL ──


def test_only_the_database_module_ends_and_begins_transactions() -> None:
    found = {module for module, tree in TREES.items() if TRANSACTION_CALLS & set(calls(tree))}
    assert found == {"core/connections.py", "core/database.py"}


def test_sql_stands_only_in_the_files_made_for_it() -> None:
    speaking = {
        module
        for module, tree in TREES.items()
        if STATEMENT_CALLS & set(calls(tree))
        or any(source.startswith(("sqlalchemy", "sqlmodel")) and name in SQL_NAMES for source, name in imports(module))
    }
    assert {
        module for module in speaking if module.split("/")[-1] not in SQL_FILES and "versions/" not in module
    } == set()
    assert {"wallets/locked.py", "ledger/store.py", "core/database.py"} <= speaking


def test_sql_that_is_put_together_as_text_gets_the_schema_of_its_tables() -> None:
    """``text`` would look for them by the search path; ``core.schema.Sql`` is the same with the schema put in."""
    above = LAYERS[LAYERS.index("core") + 1 :]
    found = {(module, name) for module in TREES for source, name in imports(module) if source.startswith("sqlalchemy")}
    assert {module for module, name in found if name in {"text", "TextClause"} and module.startswith(above)} == set()


def test_drivers_are_known_to_what_speaks_to_one_and_to_what_reads_their_failures_alone() -> None:
    drivers = {"psycopg", "sqlite3"}
    found = {module for module in TREES for source, _ in imports(module) if source.split(".")[0] in drivers}
    assert found <= {"core/clock.py", "core/failures.py", "core/statement.py"}


# ── size and documentation ──


def test_no_function_is_longer_than_a_reader_can_hold_in_mind() -> None:
    long = [
        f"{module}: {node.name} has {length} lines"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert long == []


def test_no_module_is_longer_than_a_reader_wants_to_scroll() -> None:
    lengths = {module.relative_to(SOURCE).as_posix(): len(module.read_text().splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [module for module, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []


def public_objects() -> Iterator[tuple[str, Any]]:
    for package in PUBLIC:
        for name in package.__all__:
            yield f"{package.__name__}.{name}", getattr(package, name)


def is_documented(thing: Any) -> bool:
    doc = vars(thing).get("__doc__") if isinstance(thing, type) else inspect.getdoc(thing)
    # A dataclass without a docstring is given its own signature as one.
    return bool(doc) and not (dataclasses.is_dataclass(thing) and doc.startswith(f"{thing.__name__}("))  # type: ignore[union-attr]


def test_every_public_name_exists_once_and_in_order() -> None:
    for package in PUBLIC:
        assert len(package.__all__) == len(set(package.__all__))
        assert [name for name in package.__all__ if not hasattr(package, name)] == []
        exported = {name for name, value in vars(package).items() if not name.startswith("_")}
        modules = {name for name, value in vars(package).items() if isinstance(value, types.ModuleType)}
        assert exported - modules == set(package.__all__), f"{package.__name__} exports something else than it says"


def test_every_public_class_and_function_has_a_docstring() -> None:
    documented = (type, types.FunctionType)
    assert [
        name for name, thing in public_objects() if isinstance(thing, documented) and not is_documented(thing)
    ] == []


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that our own code defines for users of the class, inherited ones too."""
    for base in cls.__mro__:
        if base.__module__.startswith("points_platform"):
            for name, member in vars(base).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if not name.startswith("_") and isinstance(function, types.FunctionType):
                    yield f"{base.__module__}.{base.__qualname__}.{name}", function


def test_every_public_method_has_a_docstring() -> None:
    methods = {
        name: method
        for _, thing in public_objects()
        if isinstance(thing, type)
        for name, method in public_methods(thing)
    }
    assert len(methods) > 30
    assert [name for name, method in sorted(methods.items()) if not method.__doc__] == []


def test_every_mutating_method_lists_the_errors_that_it_raises() -> None:
    for name in MUTATING:
        doc = inspect.getdoc(getattr(wallets.WalletService, name)) or ""
        assert "Raises" in doc, name


# ── an operation is one place ──

# Who may name an operation beside its own file: the chart, the list, the exports, the service's methods, the queue's
# public face (what it signs), and a host's example.
NAMING = {
    "ledger/accounts.py",
    "wallets/operations/__init__.py",
    "wallets/__init__.py",
    "wallets/service.py",
    "queue/service.py",
    "cli/demo.py",
}
OWN_FILES = {f"wallets/operations/{operation.name}.py": operation for operation in OPERATIONS}
# The words that are an operation's: its name, its event's type, the names of its file's classes and values.
WORDS = {word for operation in OPERATIONS for word in (operation.name, CHART[operation.name].announced)}
DECLARED = {
    declared
    for module in OWN_FILES
    for node in TREES[module].body
    if isinstance(node, ast.ClassDef | ast.Assign)
    for declared in ([node.name] if isinstance(node, ast.ClassDef) else map(ast.unparse, node.targets))
}


def docstrings(tree: ast.AST) -> set[int]:
    """The constants that are documentation."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }


def named_operations(module: str) -> Iterator[str]:
    """Every place in a module that names an operation: a text, an import, a name or an attribute."""
    skipped = docstrings(TREES[module])
    for node in ast.walk(TREES[module]):
        match node:
            case ast.Constant(value=str(value)) if value in WORDS and id(node) not in skipped:
                yield f"{module}:{node.lineno} says {value!r}"
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in DECLARED:
                yield f"{module}:{node.lineno} speaks of {name}"
    for source, name in imports(module):
        if source.startswith("points_platform.wallets.operations.") or name in DECLARED:
            yield f"{module} imports {name} from {source}"
        elif source == "points_platform.wallets.operations" and name in {operation.name for operation in OPERATIONS}:
            yield f"{module} imports {name}"


def test_each_operation_has_a_file_of_its_own_and_nothing_else_stands_beside_them() -> None:
    files = {module for module in TREES if module.startswith("wallets/operations/")}
    assert files == {*OWN_FILES, "wallets/operations/__init__.py"}
    assert all(operation.request.__module__.endswith(f".operations.{operation.name}") for operation in OPERATIONS)


def test_nothing_names_an_operation_but_its_file_the_chart_the_list_and_the_public_face() -> None:
    assert {"open", "partial_settle", "wallet.escrow_settled"} <= WORDS
    assert {"HOLD", "EscrowHoldRequest", "QueueRefundAuthorization", "WalletSpent"} <= DECLARED
    outside = {module for module in TREES if module not in NAMING and module not in OWN_FILES}
    assert {"wallets/executor.py", "ledger/verify.py", "wallets/holds.py"} <= outside
    assert [named for module in sorted(outside) for named in named_operations(module)] == []


def test_an_operation_does_not_name_another_one() -> None:
    own = {module: {operation.name, CHART[operation.name].announced} for module, operation in OWN_FILES.items()}
    others = [
        f"{module}:{node.lineno} says {node.value!r}"
        for module, mine in own.items()
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Constant) and node.value in WORDS - mine
    ]
    assert others == []
    siblings = [
        f"{module} imports {source}"
        for module in OWN_FILES
        for source, _ in imports(module)
        if source.startswith("points_platform.wallets.operations")
    ]
    assert siblings == []


def test_the_test_of_names_sees_each_way_of_naming_one() -> None:
    tree = ast.parse(
        """
'''A word in a docstring is no name: 'hold'.'''
from .operations.hold import HOLD
from .operations import spend
from . import WalletSpent
kind = operations.HOLD
if transaction.operation == "hold": publish("wallet.spent")
said = "a hold is held"
"""
    )
    TREES["wallets/planted.py"] = tree
    try:
        found = sorted(each.split(" ", 1)[1] for each in named_operations("wallets/planted.py"))
    finally:
        del TREES["wallets/planted.py"]
    assert found == [
        "imports HOLD from points_platform.wallets.operations.hold",
        "imports WalletSpent from points_platform.wallets",
        "imports spend",
        "says 'hold'",
        "says 'wallet.spent'",
        "speaks of HOLD",
    ]


# ── the public face ──

REQUEST = {"idempotency_key", "request_id", "reason", "metadata", "currency"}
AMOUNT = {"user_id", "amount"}
ESCROW_ACTION = {"user_id", "escrow_id", "queue_item_id"}
REQUESTS: dict[type, set[str]] = {
    wallets.UserCreditRequest: AMOUNT,
    wallets.EscrowHoldRequest: AMOUNT | {"queue_item_id", "feature_type"},
    wallets.EscrowSettleRequest: ESCROW_ACTION | {"amount", "model_id"},
    wallets.EscrowRefundRequest: ESCROW_ACTION | {"amount"},
    wallets.EscrowPartialSettleRequest: ESCROW_ACTION | {"model_id", "refund_amount", "settle_amount"},
    wallets.SpendRequest: AMOUNT | {"order_id"},
    wallets.TransferRequest: AMOUNT | {"recipient_id"},
    wallets.DepositRequest: AMOUNT | {"source", "reference"},
    wallets.OpenWalletRequest: {"owner"},
}
# What a request may leave out, beside metadata and currency.
OPTIONAL = {"order_id"}
RESPONSE = {"transaction_id", "timestamp", "replayed"}
AVAILABLE = {"previous_balance", "new_available_balance"}
RESPONSES: dict[type, set[str]] = {
    wallets.UserCreditResponse: AVAILABLE,
    wallets.SpendResponse: AVAILABLE,
    wallets.TransferResponse: AVAILABLE,
    wallets.DepositResponse: AVAILABLE,
    wallets.OpenWalletResponse: set(),
    wallets.EscrowHoldResponse: AVAILABLE | {"escrow_id", "escrow_balance"},
    wallets.EscrowSettleResponse: {"settled_amount", "model_earned_balance"},
    wallets.EscrowRefundResponse: {"refunded_amount", "user_available_balance"},
    wallets.EscrowPartialSettleResponse: {
        "refunded_amount",
        "settled_amount",
        "user_available_balance",
        "model_earned_balance",
    },
}
AUTHORIZATION = {"token", "queue_item_id", "escrow_id", "user_id", "reason", "issued_at", "expires_at"}
AUTHORIZATIONS: dict[type, set[str]] = {
    wallets.QueueSettlementAuthorization: {"model_id", "amount"},
    wallets.QueueRefundAuthorization: {"amount"},
    wallets.QueuePartialSettlementAuthorization: {"model_id", "refund_amount", "settle_amount"},
}
BALANCES: dict[type, set[str]] = {
    wallets.UserBalance: {"user_id", "currency", "available", "escrow", "total", "version", "as_of"},
    wallets.ModelBalance: {"model_id", "currency", "earned", "version", "as_of"},
}
EVENT = {
    "event_id",
    "event_type",
    "occurred_at",
    "transaction_id",
    "idempotency_key",
    "request_id",
    "schema_version",
}
EVENTS: dict[type, tuple[str, type, set[str]]] = {
    wallets.WalletCredited: ("wallet.credited", wallets.UserCreditResponse, AMOUNT),
    wallets.EscrowHeld: ("wallet.escrow_held", wallets.EscrowHoldResponse, AMOUNT | {"feature_type"}),
    wallets.EscrowSettled: ("wallet.escrow_settled", wallets.EscrowSettleResponse, {"escrow_id", "model_id"}),
    wallets.EscrowRefunded: ("wallet.escrow_refunded", wallets.EscrowRefundResponse, {"escrow_id", "user_id"}),
    wallets.EscrowPartiallySettled: (
        "wallet.escrow_partially_settled",
        wallets.EscrowPartialSettleResponse,
        {"escrow_id", "model_id"},
    ),
    wallets.WalletSpent: ("wallet.spent", wallets.SpendResponse, AMOUNT | {"order_id"}),
    wallets.WalletTransferred: ("wallet.transferred", wallets.TransferResponse, AMOUNT | {"recipient_id"}),
    wallets.WalletDeposited: ("wallet.deposited", wallets.DepositResponse, AMOUNT | {"source", "reference"}),
    wallets.WalletOpened: ("wallet.opened", wallets.OpenWalletResponse, {"owner"}),
}


def names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_every_operations_request_response_event_and_authorization_is_listed_and_nothing_else_is() -> None:
    listed: dict[str, Iterable[type]] = {
        "request": REQUESTS,
        "response": RESPONSES,
        "event": EVENTS,
        "authorization": AUTHORIZATIONS,
    }
    for what, classes in listed.items():
        declared = {getattr(operation, what) for operation in OPERATIONS} - {None}
        assert {cls.__name__ for cls in classes} == {cls.__name__ for cls in declared}, what


def test_the_benchmarks_measure_every_operation() -> None:
    tree = ast.parse((ROOT / "benchmarks" / "operations.py").read_text())
    lists = {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"BOTH", "OTHERS"}
    }
    measured = [name.replace(" ", "_") for names in lists.values() for name in names]
    assert_complete("benchmarks/operations.py", measured)


def test_requests_responses_authorizations_and_balances_have_exactly_these_fields() -> None:
    for table, common in (
        (REQUESTS, REQUEST),
        (RESPONSES, RESPONSE),
        (AUTHORIZATIONS, AUTHORIZATION),
        (BALANCES, set()),
    ):
        for cls, own in table.items():
            assert names(cls) == common | own, cls.__name__
    for cls in REQUESTS:
        required = {field.name for field in dataclasses.fields(cls) if field.default is not None}
        assert {"idempotency_key", "request_id"} <= required
        assert required == names(cls) - {"metadata", "currency"} - OPTIONAL, cls.__name__


def test_events_have_the_common_fields_and_those_of_their_operation() -> None:
    assert set(events.EVENT_TYPES) == {event_type for event_type, _, _ in EVENTS.values()}
    for cls, (event_type, response, own) in EVENTS.items():
        balances = names(response) - {"timestamp", "replayed"}
        assert names(cls) >= EVENT | own | balances, cls.__name__
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        assert (defaults["event_type"], defaults["schema_version"]) == (event_type, 1)


def test_values_at_the_edge_are_frozen_and_keyword_only() -> None:
    for cls in [*REQUESTS, *RESPONSES, *AUTHORIZATIONS, *BALANCES, *EVENTS, wallets.EscrowItem, wallets.WalletConfig]:
        parameters: Any = cls.__dataclass_params__  # type: ignore[attr-defined]
        assert parameters.frozen, cls.__name__
        assert all(field.kw_only for field in dataclasses.fields(cls) if field.init), cls.__name__
    for cls in RESPONSES:
        compared = {field.name for field in dataclasses.fields(cls) if field.compare}
        assert compared == names(cls) - {"replayed"}, cls.__name__


def signature(function: Any) -> list[str]:
    """The parameters: ``*name`` where only a keyword will do, ``name=`` where there is a default."""
    return [
        f"{'*' if parameter.kind is parameter.KEYWORD_ONLY else ''}{parameter.name}"
        f"{'' if parameter.default is parameter.empty else f'={parameter.default!r}'}"
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]


MUTATING: dict[str, tuple[type, type | None, type]] = {
    "credit_user": (wallets.UserCreditRequest, None, wallets.UserCreditResponse),
    "hold_in_escrow": (wallets.EscrowHoldRequest, None, wallets.EscrowHoldResponse),
    "settle_escrow": (
        wallets.EscrowSettleRequest,
        wallets.QueueSettlementAuthorization,
        wallets.EscrowSettleResponse,
    ),
    "spend_points": (wallets.SpendRequest, None, wallets.SpendResponse),
    "transfer_points": (wallets.TransferRequest, None, wallets.TransferResponse),
    "deposit_points": (wallets.DepositRequest, None, wallets.DepositResponse),
    "open_wallet": (wallets.OpenWalletRequest, None, wallets.OpenWalletResponse),
    "refund_escrow": (wallets.EscrowRefundRequest, wallets.QueueRefundAuthorization, wallets.EscrowRefundResponse),
    "partial_settle_escrow": (
        wallets.EscrowPartialSettleRequest,
        wallets.QueuePartialSettlementAuthorization,
        wallets.EscrowPartialSettleResponse,
    ),
}
FIVE_MINUTES = f"*expires_in={timedelta(minutes=5)!r}"
ACTION = ["*queue_item_id", "*escrow_id", "*user_id"]
SIGNATURES: list[tuple[Any, list[str]]] = [
    (core.Database.create_schema, []),
    (core.Database.close, []),
    (
        wallets.WalletService.carry_out,
        ["authorization", "*idempotency_key", "*request_id", "*metadata=None", "*session=None"],
    ),
    (wallets.WalletService.get_user_balance, ["user_id", "currency=None", "*session=None"]),
    (wallets.WalletService.get_model_balance, ["model_id", "currency=None", "*session=None"]),
    (wallets.WalletService.get_user_balances, ["user_id", "*session=None"]),
    (wallets.WalletService.get_model_balances, ["model_id", "*session=None"]),
    (wallets.WalletService.get_escrow, ["escrow_id", "user_id=None", "*session=None"]),
    (
        wallets.WalletService.list_escrows,
        [
            "*user_id=None",
            "*queue_item_id=None",
            "*status=None",
            "*held_before=None",
            "*limit=50",
            "*after=None",
            "*session=None",
        ],
    ),
    (queue.QueueAuthorizer.authorize_settlement, [*ACTION, "*model_id", "*amount", "*reason", FIVE_MINUTES]),
    (queue.QueueAuthorizer.authorize_refund, [*ACTION, "*amount", "*reason", FIVE_MINUTES]),
    (
        queue.QueueAuthorizer.authorize_partial_settlement,
        [*ACTION, "*model_id", "*refund_amount", "*settle_amount", "*reason", FIVE_MINUTES],
    ),
    (events.EventBus.subscribe, ["event_type", "receiver"]),
    (events.EventBus.unsubscribe, ["event_type", "receiver"]),
    (events.EventBus.publish, ["event"]),
    (events.EventBus, []),
    (wallets.WalletService, ["ledger", "*authorizer", "*events=None", "*config=None"]),
    (ledger.LedgerService, ["database"]),
]


BATCHES = {
    "credit_many": ("credit_user", "requests"),
    "deposit_many": ("deposit_points", "requests"),
    "spend_many": ("spend_points", "requests"),
    "transfer_many": ("transfer_points", "requests"),
    "hold_many": ("hold_in_escrow", "requests"),
    "settle_many": ("settle_escrow", "settlements"),
    "refund_many": ("refund_escrow", "refunds"),
}


def test_mutating_methods_take_a_request_an_authorization_where_needed_and_a_session() -> None:
    for name, (request, authorization, response) in MUTATING.items():
        method = getattr(wallets.WalletService, name)
        expected = (
            ["request", "*session=None"] if authorization is None else ["request", "authorization", "*session=None"]
        )
        assert signature(method) == expected, name
        hints = get_type_hints(method)
        assert (hints["request"], hints.get("authorization"), hints["return"]) == (request, authorization, response)


READING = {
    wallets.WalletService: {
        "get_user_balance",
        "get_user_balances",
        "get_model_balance",
        "get_model_balances",
        "get_escrow",
        "list_escrows",
    },
    ledger.LedgerService: {
        "transaction",
        "transactions",
        "transactions_of_escrow",
        "entries",
        "statement",
        "balance_as_of",
        "earnings",
        "head",
        "read_log",
    },
    ledger.LogReader: {"read"},
}
# Sealing has transactions of its own; the wallets write by a connection; a reader by its name reads nothing yet; what
# is claimed is claimed for the caller's transaction, which it cannot do without.
WITHOUT_SESSION = {"seal", "record", "reader", "claim"}


def test_whatever_reads_or_writes_takes_the_callers_session_by_its_name() -> None:
    writing = {wallets.WalletService: {*MUTATING, *BATCHES, "carry_out"}, ledger.LogReader: {"move"}}
    for service, reading in READING.items():
        methods = dict(inspect.getmembers(service, inspect.isfunction))
        public = {name for name in methods if not name.startswith("_")} - WITHOUT_SESSION
        assert public == reading | writing.get(service, set()), "a method that nobody has listed"
        assert {name for name in public if signature(methods[name])[-1] != "*session=None"} == set()


def test_methods_for_many_take_what_those_for_one_take_and_answer_each() -> None:
    for name, (of_one, parameter) in BATCHES.items():
        method = getattr(wallets.WalletService, name)
        assert signature(method) == [parameter, "*atomic=False", "*session=None"], name
        request, authorization, response = MUTATING[of_one]
        item = request if authorization is None else tuple[request, authorization]  # type: ignore[valid-type]
        hints = get_type_hints(method)
        assert hints[parameter] == Sequence[item], name  # type: ignore[valid-type]
        assert hints["return"] == list[response | errors.WalletError], name  # type: ignore[valid-type]


def test_methods_have_exactly_these_parameters() -> None:
    for function, expected in SIGNATURES:
        assert signature(function) == expected, function.__qualname__
    assert signature(core.Database)[0] == "target"
    assert signature(queue.QueueAuthorizer)[:2] == ["key", "also_accept=()"]
    options = ["*leeway", "*issuer", "*audience"]
    for cls in (queue.QueueAuthorizer, queue.AuthorizationVerifier):
        assert [parameter.split("=")[0] for parameter in signature(cls)[-3:]] == options
    for name in ("record", "entries", "transaction"):
        assert callable(getattr(ledger.LedgerService, name))
    defaults = {field.name: field.default for field in dataclasses.fields(wallets.WalletConfig)}
    assert {"max_retry_attempts": 3, "retry_backoff_ms": 100, "default_currency": "points"}.items() <= defaults.items()


ERRORS = {
    "InvalidRequestError": ("invalid_request", False),
    "InvalidAuthorizationError": ("invalid_authorization", False),
    "IdempotencyConflictError": ("idempotency_conflict", False),
    "DepositConflictError": ("deposit_conflict", False),
    "EscrowNotFoundError": ("escrow_not_found", False),
    "EscrowAlreadyProcessedError": ("escrow_already_processed", False),
    "EscrowMismatchError": ("escrow_mismatch", False),
    "InsufficientBalanceError": ("insufficient_balance", False),
    "BalanceLimitError": ("balance_limit", False),
    "OptimisticLockError": ("optimistic_lock", True),
    "ClockSkewError": ("clock_skew", True),
    "StorageUnavailableError": ("storage_unavailable", True),
    "SchemaVersionError": ("schema_version", False),
    "LedgerDamagedError": ("ledger_damaged", False),
}


def test_the_errors_are_exactly_these_with_these_codes_and_all_are_drawn_in_the_tree() -> None:
    found = {cls.__name__: (cls.code, cls.retryable) for cls in errors.WalletError.__subclasses__()}
    assert {name: value for name, value in found.items() if name in core.__all__} == ERRORS
    drawn = [line.split()[1] for line in (errors.__doc__ or "").splitlines() if "──" in line]
    first, *_, last = (place for place, name in enumerate(ERRORS) if name in refusals.__all__)
    refused = [*ERRORS][first : last + 1]
    place = drawn.index("…")  # where the refusals stand, which their own file lists
    assert [*drawn[:place], *refused, *drawn[place + 1 :]] == [*ERRORS]
    listed = [node.name for node in TREES["core/refusals.py"].body if isinstance(node, ast.ClassDef)]
    assert listed == refused, "they stand in the order in which they win"
    assert sorted(refused) == sorted(refusals.__all__)
    assert {name for name in core.__all__ if name in ERRORS or name == "WalletError"} == {*ERRORS, "WalletError"}
    assert set(refusals.__all__) <= set(wallets.__all__)


def test_pages_the_database_and_errors_are_importable_from_where_one_looks() -> None:
    everywhere = {"Database": core.Database, "Page": core.Page, "every": core.every}
    everywhere |= {name: getattr(core, name) for name in (*errors.__all__, *refusals.__all__)}
    for package in (core, ledger, wallets):
        assert {name: getattr(package, name, None) for name in everywhere} == everywhere, package.__name__
        assert set(everywhere) <= set(package.__all__), package.__name__
    for name in ("WalletError", "InvalidRequestError", "InvalidAuthorizationError"):
        assert getattr(queue, name) is everywhere[name]
    assert queue.QueueAuthorization is wallets.QueueAuthorization


# ── what is packaged ──


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a freshly built wheel; built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(SOURCE, source / "platform", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    ran = subprocess.run(
        [*build, "--disable-pip-version-check", "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_the_wheel_holds_every_module_and_type_marker_and_nothing_else(wheel: list[str]) -> None:
    packaged = {name for name in wheel if ".dist-info/" not in name}
    modules = {f"points_platform/{module}" for module in TREES}
    markers = {f"points_platform/{layer}/py.typed" for layer in LAYERS}
    assert packaged == modules | markers


def test_the_wheel_carries_the_license_and_the_command(wheel: list[str]) -> None:
    information = {name.split(".dist-info/")[1] for name in wheel if ".dist-info/" in name}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= information


def test_every_layer_can_be_imported_under_its_public_name() -> None:
    for layer in LAYERS:
        assert importlib.import_module(f"points_platform.{layer}").__all__

"""For the tests of a platform that embeds the module: everything is done for real, and nothing of it stays.

``pytest_plugins = ["points_platform.testing"]`` in the platform's ``conftest.py`` brings the fixtures; each can be
overridden there, and ``points_engine`` is the one to begin with. Nothing else in the package imports pytest.
"""

from .fixtures import (
    points_async_session_class,
    points_async_sessions,
    points_authorizer,
    points_bus,
    points_clock,
    points_config,
    points_connection,
    points_database,
    points_engine,
    points_events,
    points_ledger,
    points_schema,
    points_session,
    points_session_class,
    points_sessions,
    points_tables,
    points_wallets,
)
from .undone import UndoneDatabase, undone

__all__ = [
    "UndoneDatabase",
    "points_async_session_class",
    "points_async_sessions",
    "points_authorizer",
    "points_bus",
    "points_clock",
    "points_config",
    "points_connection",
    "points_database",
    "points_engine",
    "points_events",
    "points_ledger",
    "points_schema",
    "points_session",
    "points_session_class",
    "points_sessions",
    "points_tables",
    "points_wallets",
    "undone",
]

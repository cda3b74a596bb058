"""One statement of PostgreSQL's that is a transaction of its own: one round trip, commit included.

It goes to libpq by psycopg's wrapper (``psycopg.pq``), past the cursors of psycopg and SQLAlchemy. Their work
takes more processor time than all the rest of an operation, under the interpreter's lock, where it holds up
every other thread.
"""

import itertools
import re
import select
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from psycopg import Connection, OperationalError, pq
from psycopg.errors import error_from_result
from sqlalchemy import PoolProxiedConnection

Row = tuple[Any, ...]
Parameters = Mapping[str, Any]

# Somebody has discarded the prepared statement, or changed its tables since.
PREPARE_ANEW = {"26000", "0A000"}
SUCCESS = {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}
PARAMETER = re.compile(r"%\((\w+)\)s")
CANCEL_TIMEOUT = 5.0
PREPARED = "points_platform_prepared"
NUMBERS = itertools.count()
# In PostgreSQL's own terms and in SQLAlchemy's.
ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class Statement:
    """SQL with parameters like ``%(name)s``. They are sent as text: a cast, or their place, must tell the type."""

    def __init__(self, name: str, sql: str) -> None:
        self.name = name
        self.sql = sql
        self._names = tuple(dict.fromkeys(PARAMETER.findall(sql)))
        numbers = {name: f"${number}" for number, name in enumerate(self._names, 1)}
        self._text = PARAMETER.sub(lambda match: numbers[match[1]], sql).encode()

    def execute(
        self, pooled: PoolProxiedConnection, parameters: Parameters, isolation_level: str | None = None
    ) -> Row | None:
        """Carry it out; returns its first row, as text. On a connection in no transaction it is committed by then.

        Without an isolation level it has the one that the server gives. Raises psycopg's errors; after any
        other exception (an interrupt) the connection is of no use.
        """
        connection: Connection[Any] = pooled.dbapi_connection  # type: ignore[assignment]
        encoding = connection.info.encoding
        values = _as_bytes([parameters[name] for name in self._names], encoding)
        # By name of the statement; a name on the server is never used twice.
        prepared: dict[str, bytes] = pooled.info.setdefault(PREPARED, {})
        known = self.name in prepared
        try:
            result = self._send(connection, prepared, values, isolation_level)
        except connection.Error as error:
            if not known or error.sqlstate not in PREPARE_ANEW:
                raise
            del prepared[self.name]
            result = self._send(connection, prepared, values, isolation_level)
        if not result.ntuples:
            return None
        fields = (result.get_value(0, number) for number in range(result.nfields))
        return tuple(None if field is None else field.decode(encoding) for field in fields)

    def _send(
        self,
        connection: Connection[Any],
        prepared: dict[str, bytes],
        values: list[bytes | None],
        isolation_level: str | None,
    ) -> pq.abc.PGresult:
        libpq = connection.pgconn
        prepares = connection.prepare_threshold is not None
        if prepares and self.name not in prepared:
            name = f"points_platform_{self.name}_{next(NUMBERS)}".encode()
            libpq.send_prepare(name, self._text)
            _successful(libpq, _results(libpq))
            prepared[self.name] = name
        if isolation_level is not None:
            _begin_pipeline(libpq, isolation_level)
        if prepares:
            libpq.send_query_prepared(prepared[self.name], values)
        else:
            libpq.send_query_params(self._text, values)
        return _successful(libpq, _results(libpq) if isolation_level is None else _end_pipeline(libpq))


def give_up(pooled: PoolProxiedConnection) -> None:
    """Stop what an interrupted call has left running: the server would go on, and commit what nobody hears of."""
    connection: Connection[Any] = pooled.dbapi_connection  # type: ignore[assignment]
    with suppress(Exception):
        connection.cancel_safe(timeout=CANCEL_TIMEOUT)


def in_transaction(pooled: PoolProxiedConnection) -> bool:
    """Whether a transaction is open on the connection: a listener of the host's may have begun one."""
    connection: Connection[Any] = pooled.dbapi_connection  # type: ignore[assignment]
    return connection.pgconn.transaction_status != pq.TransactionStatus.IDLE


def _as_bytes(values: Sequence[str | int | datetime | None], encoding: str) -> list[bytes | None]:
    texts = [None if value is None else str(value).encode(encoding) for value in values]
    if b"\0" in b"".join(filter(None, texts)):
        raise ValueError("libpq would take a text with NUL for shorter than it is")
    return texts


def _begin_pipeline(libpq: pq.abc.PGconn, isolation_level: str) -> None:
    """All that is sent from here to the synchronization is one transaction of the server's, and one round trip.

    No error, interrupt or lost connection can leave it open, since there is no BEGIN: the synchronization
    commits, and what has failed is rolled back. The level holds for this transaction alone, whatever SET
    says: each begins with the default. (SET TRANSACTION would warn that there is no BEGIN.)
    """
    libpq.enter_pipeline_mode()
    libpq.send_query_params(f"SET transaction_isolation = '{isolation_level}'".encode(), None)


def _end_pipeline(libpq: pq.abc.PGconn) -> list[pq.abc.PGresult]:
    """What was told up to the answer to the synchronization; without that nobody knows of a commit."""
    libpq.pipeline_sync()
    results: list[pq.abc.PGresult] = []
    while found := _results(libpq):
        results += found
        if results[-1].status == pq.ExecStatus.PIPELINE_SYNC:
            libpq.exit_pipeline_mode()
            return results[:-1]
    raise OperationalError(libpq.get_error_message())


def _results(libpq: pq.abc.PGconn) -> list[pq.abc.PGresult]:
    """What the server tells of one command. The wait gives way to other threads, and to a keyboard interrupt."""
    waiting = select.poll()
    if libpq.flush():
        waiting.register(libpq.socket, select.POLLIN | select.POLLOUT)
        while libpq.flush():
            waiting.poll()
            libpq.consume_input()
    waiting.register(libpq.socket, select.POLLIN)
    results: list[pq.abc.PGresult] = []
    while True:
        while libpq.is_busy():
            waiting.poll()
            libpq.consume_input()
        result = libpq.get_result()
        if result is None:
            return results
        results.append(result)


def _successful(libpq: pq.abc.PGconn, results: list[pq.abc.PGresult]) -> pq.abc.PGresult:
    """The last result, if none has failed. What fails only at its commit has told its rows before that."""
    failed = next((each for each in results if each.status not in SUCCESS), None)
    if failed is None and results:
        return results[-1]
    if failed is not None and failed.error_field(pq.DiagnosticField.SQLSTATE):
        raise error_from_result(failed)
    raise OperationalError(libpq.get_error_message())

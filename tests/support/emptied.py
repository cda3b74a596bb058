"""Whether a database still has the catalogue of the template that it was copied from, and how to empty it then."""

from typing import Any

import psycopg
from psycopg import sql

# What is created or altered in a database is a row that comes into a catalogue or a new version of one, what is dropped
# is a row less; a copy of a template has its rows in their versions. So this needs no list of what a test can change.
# Left out are the catalogues that TRUNCATE, VACUUM and ANALYZE write to: what they tell of tables is compared below.
CATALOGUES = """SELECT oid::regclass::text FROM pg_class
    WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
    AND relname NOT IN ('pg_class', 'pg_statistic', 'pg_statistic_ext_data') ORDER BY 1"""
VERSIONS = "SELECT '{0}', count(*), max(xmin::text::bigint) FROM {0}"
# Smaller oids belong to what every database comes with. That a table has triggers may be said of one that had some.
RELATIONS = """SELECT to_jsonb(pg_class) - ARRAY['relfilenode', 'relpages', 'reltuples', 'relallvisible',
    'relallfrozen', 'relfrozenxid', 'relminmxid', 'relhastriggers', 'relhasrules']
    FROM pg_class WHERE oid >= 16384 ORDER BY oid"""
# Of the database itself, which is a row in a catalogue of the server: owner, rights, limits, and what it SETs.
DATABASE = """SELECT to_jsonb(pg_database) - ARRAY['oid', 'datname', 'datfrozenxid', 'datminmxid'],
    (SELECT array_agg(setrole || array_to_string(setconfig, ',')) FROM pg_db_role_setting WHERE setdatabase = oid)
    FROM pg_database WHERE datname = current_database()"""
# What ANALYZE has found out about rows that will be gone.
STATISTICS = "SELECT count(*) FROM pg_statistic WHERE starelid >= 16384"
TABLES = """SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'
    AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"""
# What is there beside the template's, which most tests that change the catalogue add and do not change any more.
# An index, a trigger or a type goes with its table or its function.
ADDED = """SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
    ELSE 'TABLE' END, oid::regclass::text FROM pg_class
    WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'S') AND oid <> ALL (%(relations)s)
    UNION ALL SELECT 'ROUTINE', oid::regprocedure::text FROM pg_proc
    WHERE oid >= 16384 AND oid <> ALL (%(routines)s)"""
SETTINGS = """SELECT CASE setrole WHEN 0 THEN '' ELSE 'ROLE ' || setrole::regrole || ' IN ' END
    || 'DATABASE ' || quote_ident(datname) || ' RESET ALL'
    FROM pg_db_role_setting JOIN pg_database ON setdatabase = pg_database.oid
    WHERE datname = current_database()"""
SEQUENCES = "SELECT FROM pg_class WHERE relkind = 'S'"
# Catalogues are read through where a session has written to one, which it reports before it ends. What is not counted
# or was forgotten in a crash is not known.
WRITES = """SELECT pg_database.oid, (SELECT stats_reset FROM pg_stat_bgwriter),
    CASE WHEN current_setting('track_counts')::bool
    THEN (SELECT sum(pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid)
              + pg_stat_get_tuples_deleted(oid))
          FROM pg_class WHERE oid < 16384 AND relkind = 'r' AND NOT relisshared) END
    FROM pg_database WHERE datname = current_database()"""
WRITTEN = """SELECT name, pg_table_size(name::regclass) FROM unnest(%s::text[]) AS name
    WHERE pg_relation_size(name::regclass) > 0"""
# TRUNCATE makes the indexes anew, which takes longer than most tests do; so many bytes of dead rows disturb nobody.
FEW = 64 * 1024

Connection = psycopg.Connection[Any]


class Template:
    """What a database was like before anybody used it."""

    def __init__(self, connection: Connection) -> None:
        catalogues = [name for (name,) in connection.execute(CATALOGUES)]
        self._versions = " UNION ALL ".join(map(VERSIONS.format, catalogues))
        self._catalogue = self._read(connection)
        self._database = connection.execute(DATABASE).fetchall()
        assert not connection.execute(SEQUENCES).fetchall(), "they would have to be set back too"
        self._oids = {
            name: [oid for (oid,) in connection.execute(sql.SQL(f"SELECT oid FROM {catalogue} WHERE oid >= 16384"))]
            for name, catalogue in (("relations", "pg_class"), ("routines", "pg_proc"))
        }
        self._tables = [name for (name,) in connection.execute(TABLES)]
        self._rows = {name: rows for name, _ in self._written(connection) if (rows := _copy_of(connection, name))}

    def restore(self, connection: Connection, *, same_catalogue: bool = False) -> bool:
        """Drop what was added, empty every table and put the template's rows back.

        False if the catalogue is another one even so. ``same_catalogue`` says that nobody has written to it.
        """
        for (setting,) in connection.execute(SETTINGS).fetchall():
            connection.execute(sql.SQL(f"ALTER {setting}"))
        if connection.execute(DATABASE).fetchall() != self._database:
            return False
        if not same_catalogue and not self._restore_catalogue(connection):
            return False
        with connection.transaction():
            # The ledger's triggers would refuse it.
            connection.execute("SET LOCAL session_replication_role = replica")
            for name, size in self._written(connection):
                how = "DELETE FROM {}" if size <= FEW else "TRUNCATE {} CASCADE"
                connection.execute(sql.SQL(how.format(name)))
            for name, rows in self._rows.items():
                with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
                    copy.write(rows)
        return True

    def _restore_catalogue(self, connection: Connection) -> bool:
        for kind, name in connection.execute(ADDED, self._oids).fetchall():
            connection.execute(sql.SQL(f"DROP {kind} IF EXISTS {name} CASCADE"))
        return self._read(connection) == self._catalogue

    def _read(self, connection: Connection) -> list[Any]:
        return [connection.execute(query).fetchall() for query in (self._versions, RELATIONS, STATISTICS)]

    def _written(self, connection: Connection) -> list[tuple[str, int]]:
        return connection.execute(WRITTEN, [self._tables]).fetchall()


def writes_to_catalogue(connection: Connection) -> object:
    """Equal at two times if nobody has written to a catalogue in between; ``None`` if that is not known."""
    row = connection.execute(WRITES).fetchone()
    return None if row is None or row[-1] is None else row


def _copy_of(connection: Connection, table: str) -> bytes:
    with connection.cursor().copy(f"COPY {table} TO STDOUT") as copy:
        return b"".join(map(bytes, copy))

"""What the revisions promise and somebody may have taken away since: triggers, constraints and indexes.

All is read from the revisions' own statements, and held against what the database says of itself. Both are compared
word by word, without what each engine adds or leaves out when it repeats a definition.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection, text

from .revisions import statements


class Promise(NamedTuple):
    """A trigger (or its function), a constraint or an index of a table, and what it says, word by word."""

    kind: str
    table: str
    name: str
    says: str


class Broken(NamedTuple):
    """A promise, and what is there instead of it: ``None``, or what stands under its name."""

    promise: Promise
    found: str | None


CREATED = re.compile(r"CREATE (?:UNIQUE )?(TABLE|INDEX|FUNCTION|TRIGGER) (?:\"[^\"]+\"\.)?(\w+)")
ON = re.compile(r"\bON (\w+)")
BODY = re.compile(r"\$\$(.*)\$\$", re.DOTALL)
CONSTRAINT = re.compile(r"(?:CONSTRAINT (\w+) )?(PRIMARY KEY|UNIQUE|CHECK)\b(.*)")
CAST = re.compile(r"::(?:character varying|\w+)(?:\[\])?")
WORD = re.compile(r"'[^']*'|\w+|[<>=+-]+")
# As PostgreSQL repeats what was said in another way.
REPEATED = {"<> ALL": "NOT IN", "= ANY": "IN", "ARRAY": "", "USING btree": ""}

_OF_SQLITE = text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
_OF_POSTGRESQL = text("""
    WITH ours AS (
        SELECT c.oid, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = coalesce(CAST(:schema AS text), current_schema()) AND c.relkind IN ('r', 'p')
    ), called AS (
        SELECT t.*, c.relname FROM pg_trigger t JOIN ours c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal
    )
    SELECT 'trigger', relname, tgname, pg_get_triggerdef(oid), CASE WHEN tgenabled NOT IN ('O', 'A') THEN 'disabled'
        WHEN tgenabled = 'O' AND current_setting('session_replication_role') = 'replica' THEN 'replica' END
    FROM called
    UNION ALL SELECT 'function', '', p.proname, p.prosrc, NULL
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace LEFT JOIN called t ON t.tgfoid = p.oid
    WHERE t.oid IS NOT NULL OR (n.nspname = coalesce(CAST(:schema AS text), current_schema())
        AND NOT EXISTS (SELECT FROM called t JOIN pg_proc o ON o.oid = t.tgfoid WHERE o.proname = p.proname))
    UNION ALL SELECT 'constraint', relname, conname, pg_get_constraintdef(k.oid),
        CASE WHEN NOT convalidated THEN 'not valid' WHEN NOT (i.indisvalid AND i.indisready) THEN 'invalid' END
    FROM pg_constraint k JOIN ours c ON c.oid = k.conrelid LEFT JOIN pg_index i ON i.indexrelid = k.conindid
    UNION ALL SELECT 'constraint', relname, attname, attname || ' NOT NULL', NULL
    FROM pg_attribute JOIN ours c ON c.oid = attrelid WHERE attnum > 0 AND attnotnull
    UNION ALL SELECT 'index', c.relname, x.relname, pg_get_indexdef(i.indexrelid),
        CASE WHEN NOT (i.indisvalid AND i.indisready) THEN 'invalid' END
    FROM pg_index i JOIN ours c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
""")


def broken(connection: Connection, schema: str | None = None) -> Iterator[Broken]:
    """What the revisions have made and is not there, or not in force. Raises SQLAlchemy's errors."""
    sound, named = set[tuple[str, ...]](), dict[tuple[str, ...], str]()
    for found, flaw in _found(connection, schema):
        kind, table, name, says = found
        if flaw is None:
            sound.add((kind, table, says))
        named[kind, table, name] = says if flaw is None else flaw
    for promise in promises(connection.dialect.name):
        if (promise.kind, promise.table, promise.says) not in sound:
            yield Broken(promise, named.get(promise[:3]))


@cache
def promises(dialect: str) -> tuple[Promise, ...]:
    """What the revisions promise, each once."""
    return tuple(dict.fromkeys(_told(statement for _, statement in statements(dialect))))


def _found(connection: Connection, schema: str | None) -> Iterator[tuple[Promise, str | None]]:
    """What the database says that it has, each with why it is not in force."""
    if connection.dialect.name == "sqlite":
        # A table that was renamed has its name in quotation marks.
        made = (statement.replace('"', "") for statement in connection.scalars(_OF_SQLITE))
        yield from ((each, None) for each in _told(made))
        return
    for kind, table, name, says, flaw in connection.execute(_OF_POSTGRESQL, {"schema": schema}):
        yield Promise(kind, table, name, _words(says, in_order=kind != "trigger")), flaw


def _told(made: Iterable[str]) -> Iterator[Promise]:
    """What statements that create something promise."""
    for statement in made:
        created = CREATED.search(statement)
        if created is None:
            continue
        what, name = created.groups()
        if what == "TABLE":
            yield from _of_table(name, statement)
        elif what == "FUNCTION":
            yield Promise("function", "", name, _words("".join(BODY.findall(statement))))
        else:
            # PostgreSQL has an order of its own for what a trigger is called by.
            of_sqlite = "BEGIN" in statement
            says = _words(statement, in_order=what == "INDEX" or of_sqlite)
            yield Promise(what.lower(), "".join(ON.findall(statement)[:1]), name, says)


def _of_table(table: str, statement: str) -> Iterator[Promise]:
    for part in _parts(statement[statement.index("(") + 1 : statement.rindex(")")]):
        constraint = CONSTRAINT.match(part)
        if constraint is not None:
            name, kind, rest = constraint.groups()
            usual = {"PRIMARY KEY": f"{table}_pkey", "UNIQUE": f"{table}_{'_'.join(WORD.findall(rest))}_key"}
            yield Promise("constraint", table, name or usual.get(kind, kind), _words(kind + rest))
        elif "NOT NULL" in part:
            column = part.split()[0]
            yield Promise("constraint", table, column, f"{column} NOT NULL")


def _parts(body: str) -> Iterator[str]:
    """What stands between the commas that are in no parentheses, in one line each."""
    depth, part = 0, ""
    for letter in " ".join(body.split()):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


def _words(definition: str, *, in_order: bool = True) -> str:
    """The words of a definition; parentheses and casts are the engine's own."""
    definition = CAST.sub("", re.sub(r"(?:\"[^\"]+\"|\w+)\.(?=\w)", "", definition))
    for theirs, ours in REPEATED.items():
        definition = definition.replace(theirs, ours)
    words = WORD.findall(re.sub(r"'(\d+)'", r"\1", definition))
    return " ".join(words if in_order else sorted(words))

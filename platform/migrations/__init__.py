"""The schema: what brings a database, empty or of an older release, to the one that this release needs.

Revisions are literal statements, run by Alembic on a given connection and in its transaction. They stand at the bottom
of the house and import nothing of ours. A host's own migrations call ``upgrade`` inside a revision of theirs.
"""

from .given import check_schema, check_untranslated
from .promised import Broken, Promise, broken, promises
from .revisions import (
    HEAD,
    VERSION_TABLE,
    Stamp,
    TableInTheWayError,
    include_object,
    include_object_outside,
    metadata,
    misplaced,
    script,
    stamp_of,
    upgrade,
)

__all__ = [
    "HEAD",
    "VERSION_TABLE",
    "Broken",
    "Promise",
    "Stamp",
    "TableInTheWayError",
    "broken",
    "check_schema",
    "check_untranslated",
    "include_object",
    "include_object_outside",
    "metadata",
    "misplaced",
    "promises",
    "script",
    "stamp_of",
    "upgrade",
]

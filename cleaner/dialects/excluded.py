"""The errors for foreign keys that lead out of the target."""

from __future__ import annotations

from cleaner.errors import ExcludedTableError
from cleaner.spi import Database, ForeignKey


def reaches_outside(database: Database, key: ForeignKey) -> ExcludedTableError:
    """The error for rows that are to be kept, and refer to rows that are not."""
    child, parent = database.relation(key.child), database.relation(key.parent)
    return ExcludedTableError.referring(child.name, parent.name, key.name, key.on_delete)


def lacks(database: Database, key: ForeignKey) -> ExcludedTableError:
    """The error for captured rows that refer to rows that were to be kept, and are gone."""
    child, parent = database.relation(key.child), database.relation(key.parent)
    return ExcludedTableError.lacking(child.name, parent.name, key.name)

"""What of the metadata shapes a database: the DDL that creates it, and who listens to that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import ClauseElement, Dialect, MetaData, Table, schema
from sqlalchemy.dialects.postgresql import DOMAIN, CreateDomainType
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.types import TypeEngine

_DIALECT: Dialect = PGDialect()  # type: ignore[no-untyped-call]
_TELLING = (  # noqa: SIM905 - of what can't be compiled
    "name type nullable primary_key server_default foreign_keys unique expressions elements "
    "columns sqltext ondelete onupdate deferrable initially match start increment statement context"
).split()


def creation(metadata: MetaData) -> Iterator[str | Callable[..., object]]:
    """What creates everything of ``metadata``; a function where one listens to the creation."""
    sequences = getattr(metadata, "_sequences", {})
    yield from (_compiled(schema.CreateSequence(each)) for each in sequences.values())
    for target in (metadata, *metadata.tables.values()):
        for event in ("before_create", "after_create"):
            for listener in getattr(target.dispatch, event):
                if isinstance(listener, schema.ExecutableDDLElement):
                    condition = getattr(listener, "_ddl_if", None)
                    where = f"{event} of {getattr(target, 'fullname', '')}"
                    yield f"{where}: {_compiled(listener)} {_plain(condition)}"
                    listener = getattr(condition, "callable_", None)  # noqa: PLW2901
                owner = getattr(listener, "__self__", getattr(listener, "target", None))
                if hasattr(owner, "enums"):  # a type that belongs to the metadata, not to a table
                    yield _type(owner)
                elif listener is not None:
                    yield listener
    for table in metadata.tables.values():
        yield "\n".join(
            [table.fullname, str([each.name for each in table.columns]), *_table(table)]
        )


def _table(table: Table) -> list[str]:
    create = getattr(table, "_creator_ddl", None)
    parts: list[str] = []
    apart = list(table.constraints)
    try:
        text = _rendered(schema.CreateTable(table) if create is None else create)
    except Exception:  # a type, or the table of a foreign key, that is unknown here
        parts += [_compiled(schema.CreateColumn(each)) for each in table.columns]
    else:
        head, _, rest = text.partition("(\n\t")
        body, _, tail = rest.rpartition("\n)")
        parts += [head, tail, *body.split(", \n\t")]
        apart = [each for each in apart if getattr(each, "use_alter", False)]
    parts += [_compiled(each) for each in apart]
    parts += [_compiled(schema.CreateIndex(each)) for each in table.indexes]
    parts += [_type(each.type) for each in table.columns]
    commented = [table, *table.columns, *table.constraints]
    parts += [f"{each.name}: {each.comment}" for each in commented if each.comment]
    return sorted(parts)


def _type(kind: object) -> str:
    """The values of an enum and the body of a domain, wherever they are within the type."""
    told: list[str] = []
    queue = [kind]
    for each in queue:
        if not isinstance(each, TypeEngine) or len(queue) > 20:
            continue
        with suppress(Exception):  # a type of the user's that doesn't know PostgreSQL
            each = each.dialect_impl(_DIALECT)  # noqa: PLW2901
        if hasattr(each, "enums"):
            told.append(_plain([getattr(each, name, None) for name in ("schema", "name", "enums")]))
        elif isinstance(each, DOMAIN):
            told.append(_compiled(CreateDomainType(each)))
        queue += [getattr(each, name, None) for name in ("impl", "item_type", "data_type")]
    return " ".join(told)


def _rendered(element: Any) -> str:
    return str(_DIALECT.ddl_compiler(_DIALECT, None).process(element))  # type: ignore[arg-type]


def _compiled(element: Any) -> str:
    try:
        return _rendered(element)
    except Exception:
        of = getattr(element, "element", element)
        return _plain([type(of).__qualname__, *(getattr(of, name, None) for name in _TELLING)])


def _plain(value: object) -> str:
    """A text without what differs between two processes: addresses, and the order of sets."""
    try:
        if isinstance(value, (list, tuple)):
            return str([_plain(each) for each in value])
        if hasattr(value, "arg") or hasattr(value, "sqltext"):  # a server default
            return _plain([getattr(value, name, None) for name in ("arg", "sqltext")])
        if isinstance(value, (str, ClauseElement)):
            return str(value)
        text = repr(value)
    except Exception:
        text = type(value).__qualname__
    text = re.sub(r"(?i)(\bat |@)(0x[0-9a-f]+|\d{9,})", "", text)
    return re.sub(r"\{([^{}]*)\}", lambda found: str(sorted(found[1].split(", "))), text)

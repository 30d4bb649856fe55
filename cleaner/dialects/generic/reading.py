"""What a database holds, as SQLAlchemy's Inspector or the standard's views tell it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Engine, Inspector, column, inspect, select, table
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cleaner.spi import Action, Database, ForeignKey, Relation, Sequence

Result = TypeVar("Result")
ColumnName = tuple[str, str]  # table, column
Columns = Mapping[tuple[str | None, str], list[ReflectedColumn]]

_ACTIONS: dict[str, Action] = {
    "CASCADE": "cascade",
    "RESTRICT": "restrict",
    "SET NULL": "set null",
    "SET DEFAULT": "set default",
}
_WEAKER = (
    "{} is cleaned by SQLAlchemy alone: only its default schema is looked at, nothing keeps two "
    "cleans apart or writers out meanwhile, and a lock is waited for as long as the database waits"
)
_NO_RESTART = "SQLAlchemy has no statement that restarts it; ids in tests must not be counted on"
_NO_TRUNCATE = 'SQLAlchemy has no TRUNCATE; strategy = "auto" or "delete"'
_NO_REPLICA = "SQLAlchemy has no way to switch foreign keys off for a session"
_EAGER = (
    "the database refuses to delete parents in the transaction that has deleted their children: "
    "each table is emptied in a transaction of its own, and a clean that fails may leave some of "
    "them emptied"
)


@dataclass(frozen=True)
class Catalog:
    """``database``, and what it does not tell: the ``names`` of all tables, by which a new schema
    is noticed, and the columns that are ``nullable``. ``eager``: its foreign keys can't stand a
    parent that goes in the transaction in which its children went.
    """

    database: Database
    names: frozenset[str]
    nullable: frozenset[ColumnName]
    eager: bool


def catalog(engine: Engine, name: str, *, eager: bool) -> Catalog:
    """What the default schema of the database holds."""
    inspector = inspect(engine)
    tables = sorted(table_names(inspector))
    views = _offered(inspector.get_view_names) or []
    schema = inspector.default_schema_name or ""
    columns = _offered(inspector.get_multi_columns)
    named = _column_names(engine, columns, schema)
    numbers = {table: number for number, table in enumerate([*tables, *views], 1)}
    relations = [
        Relation(
            key=number,
            schema=schema,
            table=each,
            name=each,
            kind="view" if each in views else "table",
            untruncatable=_NO_TRUNCATE,
            bookkeeping=named.get(each) == ["version_num"],
        )
        for each, number in numbers.items()
    ]
    keys, nullable = _foreign_keys(engine, inspector, columns, schema, numbers)
    sequences = [
        Sequence(-number, schema, sequence, sequence, owner=owner, refusal=_NO_RESTART)
        for number, (sequence, owner) in enumerate(_sequences(inspector, columns, numbers), 1)
    ]
    warnings = [_WEAKER.format(name), *([_EAGER] if eager else [])]
    if keys is None:
        warnings.append(
            "the foreign keys can't be read: tables are emptied in the order of their names"
        )
    what = repr((relations, keys, sorted(nullable), sequences))
    return Catalog(
        Database(
            name=name,
            server=engine.dialect.name,
            user=engine.url.username or "",
            search_path=(schema,),
            fingerprint=hashlib.sha256(what.encode()).hexdigest(),
            no_replica=_NO_REPLICA,
            no_recreate="SQLAlchemy has no way to copy a database",
            relations=tuple(relations),
            foreign_keys=tuple(keys or ()),
            sequences=tuple(sequences),
            warnings=tuple(warnings),
        ),
        frozenset(tables),
        frozenset(nullable),
        eager,
    )


def table_names(inspector: Inspector) -> set[str]:
    """The tables of the default schema: asked for none, some dialects tell those of all."""
    return set(inspector.get_table_names(schema=inspector.default_schema_name))


def _column_names(engine: Engine, columns: Columns | None, schema: str) -> dict[str, list[str]]:
    """By table; nothing where nobody can tell."""
    if columns is not None:
        return {name: [each["name"] for each in listed] for (_, name), listed in columns.items()}
    named: dict[str, list[str]] = {}
    for (name, each), _ in _offered(lambda: _standard_columns(engine, schema)) or ():
        named.setdefault(name, []).append(each)
    return named


def described(engine: Engine, found: Catalog) -> Iterator[str]:
    """A line for each table, view, column, foreign key and sequence."""
    database = found.database
    for relation in database.relations:
        yield f"{relation.kind} {relation.name}"
    columns = _offered(inspect(engine).get_multi_columns)
    if columns is None:
        for (name, column_name), null in _standard_columns(engine, database.search_path[0]):
            yield f"column {name}.{column_name}{'' if null else ' NOT NULL'}"
    for (_, name), listed in (columns or {}).items():
        for each in listed:
            needed = "" if each["nullable"] else " NOT NULL"
            yield f"column {name}.{each['name']} {each['type']!r}{needed}"
    for key in database.foreign_keys:
        child, parent = database.relation(key.child).name, database.relation(key.parent).name
        yield f"foreign key {child} {key.columns} -> {parent} {key.referred}, {key.on_delete}"
    for sequence in database.sequences:
        yield f"sequence {sequence.name}"


def _offered(ask: Callable[[], Result]) -> Result | None:
    """What the Inspector says; None where the dialect has not taught it that."""
    try:
        return ask()
    except (NotImplementedError, SQLAlchemyError) as error:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        return None


def _sequences(
    inspector: Inspector, columns: Columns | None, numbers: dict[str, int]
) -> Iterator[tuple[str, int | None]]:
    """The sequences, and the counters of columns that number rows without one."""
    for sequence in _offered(inspector.get_sequence_names) or []:
        yield sequence, None
    for (_, name), listed in (columns or {}).items():
        for each in listed:
            counts = each.get("identity") or (
                each.get("autoincrement") is True and not each.get("default")
            )
            if counts and name in numbers:
                yield f"{name}.{each['name']}", numbers[name]


# -- foreign keys -----------------------------------------------------------------------------


def _foreign_keys(
    engine: Engine,
    inspector: Inspector,
    columns: Columns | None,
    schema: str,
    numbers: dict[str, int],
) -> tuple[list[ForeignKey] | None, set[ColumnName]]:
    """Those between the tables, with the columns that can be NULL; None: nobody can tell them."""
    told = _offered(lambda: list(_inspected(inspector, schema, numbers)))
    if told and columns is not None:
        nullable = {
            (table, each["name"])
            for (_, table), listed in columns.items()
            for each in listed
            if each["nullable"]
        }
        return told, nullable
    # A dialect that passes for another may be told nothing by the catalogue that it asks.
    standard = _offered(lambda: list(_standard_keys(engine, schema, numbers)))
    if standard is None:
        return told, set()
    listed_too = _offered(lambda: _standard_columns(engine, schema)) or []
    return standard, {name for name, can_be_null in listed_too if can_be_null}


def _inspected(inspector: Inspector, schema: str, numbers: dict[str, int]) -> Iterator[ForeignKey]:
    for (_, child), keys in sorted(inspector.get_multi_foreign_keys().items()):
        for key in keys if child in numbers else ():
            if key["referred_schema"] in (None, schema) and key["referred_table"] in numbers:
                yield ForeignKey(
                    name=key["name"] or "",
                    child=numbers[child],
                    parent=numbers[key["referred_table"]],
                    columns=tuple(key["constrained_columns"]),
                    referred=tuple(key["referred_columns"]),
                    on_delete=_action(key.get("options", {}).get("ondelete")),
                )


def _action(rule: str | None) -> Action:
    return _ACTIONS.get((rule or "").upper(), "no action")


def _standard_keys(engine: Engine, schema: str, numbers: dict[str, int]) -> Iterator[ForeignKey]:
    """By the views ``information_schema``, which are part of the standard."""
    unique = [f"unique_constraint_{part}" for part in ("catalog", "schema", "name")]
    named = [f"constraint_{part}" for part in ("catalog", "schema", "name")]
    places: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    with engine.connect() as connection:
        keys = connection.execute(
            _view("referential_constraints", *named, *unique, "delete_rule")
        ).all()
        for row in connection.execute(
            _view("key_column_usage", *named, "ordinal_position", "table_name", "column_name")
        ).all():
            places.setdefault(tuple(row[:3]), []).append(tuple(row[3:]))
    for key in sorted(keys, key=str):
        children, parents = sorted(places.get(key[:3], [])), sorted(places.get(key[3:6], []))
        if not children or not parents or key[1] != schema or key[4] != schema:
            continue
        child, parent = children[0][1], parents[0][1]
        if child in numbers and parent in numbers:
            yield ForeignKey(
                name=key[2],
                child=numbers[child],
                parent=numbers[parent],
                columns=tuple(place[2] for place in children),
                referred=tuple(place[2] for place in parents),
                on_delete=_action(key[6]),
            )


def _standard_columns(engine: Engine, schema: str) -> list[tuple[ColumnName, bool]]:
    """The columns of the tables, and whether they can be NULL."""
    view = _view("columns", "table_name", "column_name", "is_nullable")
    with engine.connect() as connection:
        rows = connection.execute(view.where(column("table_schema") == schema)).all()
    return sorted(((name, each), nullable == "YES") for name, each, nullable in rows)


def _view(name: str, *columns: str) -> Any:
    return select(*map(column, columns)).select_from(table(name, schema="information_schema"))

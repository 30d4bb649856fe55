"""The columns of tables whose rows are kept, and what their types are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cleaner.dialects.postgresql.sql import oid_array, quote
from cleaner.dialects.strings import literal

# The type's name, whatever the search_path: format_type() leaves a schema out that is in it.
_TYPE = """CASE WHEN {id} < 16384 THEN pg_catalog.format_type({id}, {mod}) ELSE (
        SELECT pg_catalog.format('%I.%I', ns.nspname, elem.typname) || pg_catalog.substr(
                   pg_catalog.format_type({id}, {mod}),
                   pg_catalog.length(pg_catalog.format_type(elem.oid, NULL)) + 1)
          FROM pg_catalog.pg_type own
          JOIN pg_catalog.pg_type elem ON elem.oid = CASE
               WHEN own.typsubscript = 'pg_catalog.array_subscript_handler'::regproc
               THEN own.typelem ELSE own.oid END
          JOIN pg_catalog.pg_namespace ns ON ns.oid = elem.typnamespace
         WHERE own.oid = {id}) END"""


def _type(oid: str, modifier: str) -> str:
    return _TYPE.replace("{id}", oid).replace("{mod}", modifier)


# What can be altered without a row being written: the values of enums, the attributes of
# composite types, wherever in the type they are.
_MADE = f"""CASE WHEN a.atttypid >= 16384 THEN (
    WITH RECURSIVE made(id) AS (
        SELECT a.atttypid UNION
        SELECT u.id FROM made m JOIN pg_catalog.pg_type y ON y.oid = m.id
          LEFT JOIN pg_catalog.pg_range r ON y.oid IN (r.rngtypid, r.rngmultitypid),
               LATERAL (SELECT y.typelem UNION SELECT y.typbasetype UNION SELECT r.rngsubtype
                  UNION SELECT x.atttypid FROM pg_catalog.pg_attribute x
                         WHERE x.attrelid = y.typrelid AND x.attnum > 0) u(id)
         WHERE u.id >= 16384)
    SELECT pg_catalog.json_build_object(
        'values', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                              {_type("v.enumtypid", "NULL")}, v.enumlabel, v.oid::int8))
                     FROM made m JOIN pg_catalog.pg_enum v ON v.enumtypid = m.id),
        'attributes', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                                  {_type("y.oid", "NULL")}, x.attnum,
                                  {_type("x.atttypid", "x.atttypmod")}, x.attrelid::int8)
                                  ORDER BY x.attrelid, x.attnum)
                         FROM made m JOIN pg_catalog.pg_type y ON y.oid = m.id
                         JOIN pg_catalog.pg_attribute x ON x.attrelid = y.typrelid
                        WHERE x.attnum > 0 AND NOT x.attisdropped))) END"""

# The key is what tells a row from others, in a way that the server enforces at once.
_COLUMNS = f"""SELECT pg_catalog.json_object_agg(c.oid::int8, pg_catalog.json_build_object(
    'oids', CASE c.relkind WHEN 'p' THEN (
        WITH RECURSIVE below(o) AS (SELECT c.oid UNION SELECT i.inhrelid
            FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.o)
        SELECT pg_catalog.json_agg(b.o::int8 ORDER BY b.o) FROM below b)
        ELSE pg_catalog.json_build_array(c.oid::int8) END,
    'columns', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
        'name', a.attname, 'number', a.attnum,
        'type', {_type("a.atttypid", "a.atttypmod")},
        'spelled', pg_catalog.format_type(a.atttypid, a.atttypmod),
        'made', {_MADE},
        'builtin', a.atttypid < 16384 AND a.attcollation < 16384,
        'collation', (SELECT pg_catalog.format('%I.%I', n.nspname, l.collname)
                        FROM pg_catalog.pg_collation l
                        JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace
                       WHERE l.oid = a.attcollation AND l.oid >= 16384),
        'always', a.attidentity = 'a') ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    'key', (SELECT pg_catalog.json_agg(a.attname ORDER BY u.i)
              FROM (SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS numbers
                      FROM pg_catalog.pg_index i
                     WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
                       AND i.indpred IS NULL AND i.indexprs IS NULL
                       AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute n
                            WHERE n.attrelid = c.oid AND NOT n.attnotnull
                              AND n.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                       AND NOT EXISTS (SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1],
                                (i.indcollation::oid[])[0:i.indnkeyatts - 1]) u(n, l)
                             JOIN pg_catalog.pg_attribute n ON n.attrelid = c.oid AND n.attnum = u.n
                             JOIN pg_catalog.pg_collation l ON l.oid = n.attcollation
                            WHERE NOT l.collisdeterministic AND l.oid <> u.l)
                     ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1) k,
                   unnest(k.numbers) WITH ORDINALITY u(n, i)
              JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.n)))::text
  FROM pg_catalog.pg_class c WHERE c.oid = ANY ({{oids}})"""


@dataclass(frozen=True)
class Column:
    """A column that can be written to; ``kept`` is the type of its copy, ``spelled`` its own as the
    search_path has it, ``made`` what its type is made of.
    """

    name: str
    number: int
    type: str
    spelled: str
    made: Mapping[str, list[list[Any]] | None] | None
    builtin: bool
    collation: str | None
    always: bool
    kept: str

    @property
    def values(self) -> list[list[Any]]:
        """Of the enums in its type: the enum, a label, and the oid by which rows hold it."""
        return (self.made or {}).get("values") or []

    @property
    def attributes(self) -> list[list[Any]]:
        """Of the composite types in its type: which, a number, a type, and whose attribute."""
        return (self.made or {}).get("attributes") or []

    @property
    def entry(self) -> dict[str, Any]:
        """What is kept of it with the rows."""
        kept = self.type if self.builtin else "text"
        more = {"values": self.values, "attributes": self._named} if self.made else {}
        return {"number": self.number, "type": self.type, "kept": kept, **more}

    @property
    def _named(self) -> list[list[Any]]:
        return [attribute[:3] for attribute in self.attributes]

    def fits(self, was: Mapping[str, Any]) -> bool:
        """Whether what an ``entry`` tells of can be put back: it is the same column still, and its
        type can be read from text as then. New values of an enum are no matter.
        """
        there = {(kind, label) for kind, label, _ in self.values}
        return (
            was["number"] == self.number
            # A search_path had its say in what older versions kept.
            and was["type"] in (self.type, *([] if "values" in was else [self.spelled]))
            and was["kept"] == self.entry["kept"]
            and there >= {(kind, label) for kind, label, _ in was.get("values", ())}
            and was.get("attributes", self._named) == self._named
        )

    def reads_alike(self, was: Mapping[str, Any]) -> bool:
        """Whether a row that nobody has written since then still holds the same values."""
        return set(map(tuple, self.values)) >= set(map(tuple, was.get("values", ())))

    @property
    def to_copy(self) -> str:
        """What the copy holds of ``t``'s value."""
        value = f"t.{quote(self.name)}"
        return value if self.builtin else f'{value}::text COLLATE pg_catalog."C"'

    @property
    def from_copy(self) -> str:
        """The value that the copy ``c`` holds."""
        return self._cast(f"c.{quote(self.name)}")

    @property
    def there_and_back(self) -> str:
        """What would be put back of ``t``'s value."""
        return self._cast(self.to_copy)

    def _cast(self, value: str) -> str:
        if self.kept != self.type:
            value = f"({value})::{self.type}"
        return f"{value} COLLATE {self.collation}" if self.collation else value


def columns_of(oids: Iterable[int]) -> str:
    """The query for the columns and keys of these relations, for :func:`.baseline.shapes`."""
    return _COLUMNS.replace("{oids}", oid_array(oids))


def altered(columns: Iterable[Column]) -> str:
    """A condition: a type of these columns is not made of what it was; empty if none can be."""
    columns = tuple(columns)
    values = sorted({(oid, label) for column in columns for _, label, oid in column.values})
    numbers = {(of, number) for column in columns for _, number, _, of in column.attributes}
    found = []
    if values:
        oids = oid_array(oid for oid, _ in values)
        labels = ", ".join(literal(label) for _, label in values)
        found.append(
            f"EXISTS (SELECT FROM unnest({oids}, ARRAY[{labels}]) v(o, l) LEFT JOIN"
            " pg_catalog.pg_enum e ON e.oid = v.o WHERE e.enumlabel::text IS DISTINCT FROM v.l)"
        )
    if numbers:
        oids = oid_array(sorted({of for of, _ in numbers}))
        found.append(  # numbers are never given again
            "(SELECT pg_catalog.sum(65536 + x.attnum) FROM pg_catalog.pg_attribute x WHERE"
            f" x.attrelid = ANY ({oids}) AND x.attnum > 0 AND NOT x.attisdropped)"
            f" IS DISTINCT FROM {sum(65536 + number for _, number in numbers)}"
        )
    return " OR ".join(found)

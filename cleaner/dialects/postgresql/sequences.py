"""Sequences back to their START or captured position, and which of them have moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cleaner.dialects.postgresql.catalog import Catalog
from cleaner.dialects.postgresql.sql import oid_array, qualified
from cleaner.spi import Sequence


class Sequences:
    """The SQL for the sequences of a plan, which are counted from 1.

    ``setval`` puts most of them back. It does not reach the values that other sessions have
    cached: those sequences are restarted, which does, but writes a new file.
    """

    def __init__(self, sequences: Iterable[Sequence], catalog: Catalog) -> None:
        self.all = tuple(sequences)
        numbered = list(enumerate(self.all, 1))
        self._positions = catalog.sequence_positions
        self._version = catalog.version
        self._cached = [(i, s) for i, s in numbered if s.key in catalog.cached_sequences]
        self._plain = [(i, s) for i, s in numbered if s.key not in catalog.cached_sequences]

    @property
    def plain(self) -> bool:
        """Whether there are any that setval can put back."""
        return bool(self._plain)

    @property
    def cached(self) -> tuple[int, ...]:
        """The oids of those that have to be restarted."""
        return tuple(sequence.key for _, sequence in self._cached)

    def moved(self) -> str:
        """An expression: the positions of the plain ones that have moved."""
        if self._version >= 180000:
            return f"""ARRAY(SELECT u.i FROM unnest({self._arrays()}) u(o, s, c, i)
        WHERE NOT pg_catalog.pg_get_sequence_data(u.o) = ROW(u.s, u.c))"""
        looks = "\n    UNION ALL ".join(
            f"SELECT {i} FROM {qualified(s.schema, s.sequence)} q "
            f"WHERE (q.last_value, q.is_called) <> {self._position(s)}"
            for i, s in self._plain
        )
        return f"ARRAY({looks})"

    def restart(self, known: bool) -> Iterator[str]:
        """Put back those that have moved; ``known``: the plain ones are in ``restarted``."""
        if not self.all:
            return
        yield "-- 7. sequences; setval comes last, since it can't be undone"
        for i, sequence in self._cached:
            sql = qualified(sequence.schema, sequence.sequence)
            last, called = self._positions[sequence.key]
            yield f"""IF (SELECT (s.last_value, s.is_called) <> {self._position(sequence)} FROM {sql} s) THEN
    ALTER SEQUENCE {sql} RESTART; restarted := restarted || {i};
    PERFORM pg_catalog.setval({sequence.key}, {last}, {called});
END IF;"""
        if not self._plain:
            return
        if not known:
            yield f"restarted := restarted || {self.moved()};"
        yield f"""IF restarted <> '{{}}' THEN
    PERFORM pg_catalog.setval(u.o, u.s, u.c) FROM unnest({self._arrays()}) u(o, s, c, i)
      WHERE u.i = ANY (restarted);
END IF;"""

    def _position(self, sequence: Sequence) -> str:
        last, called = self._positions[sequence.key]
        return f"({last}, {called})"

    def _arrays(self) -> str:
        """Oids, last values, whether those were called, and positions of the plain ones."""
        places = [self._positions[sequence.key] for _, sequence in self._plain]
        values = ",".join(str(last) for last, _ in places)
        called = ",".join("t" if called else "f" for _, called in places)
        positions = ",".join(str(i) for i, _ in self._plain)
        oids = oid_array(sequence.key for _, sequence in self._plain)
        return f"{oids}, '{{{values}}}'::int8[], '{{{called}}}'::bool[], '{{{positions}}}'::int[]"

"""Sequences back to their START, and which of them have moved."""

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
        self._starts = catalog.sequence_starts
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
        """An expression: the positions of the plain ones that are not at their START."""
        if self._version >= 180000:
            return f"""ARRAY(SELECT u.i FROM unnest({self._arrays()}) u(o, s, i)
        WHERE NOT pg_catalog.pg_get_sequence_data(u.o) = ROW(u.s, false))"""
        looks = "\n    UNION ALL ".join(
            f"SELECT {i} FROM {qualified(s.schema, s.sequence)} q "
            f"WHERE q.is_called OR q.last_value <> {self._starts[s.key]}"
            for i, s in self._plain
        )
        return f"ARRAY({looks})"

    def restart(self, known: bool) -> Iterator[str]:
        """Put back those that have moved; ``known``: the plain ones are in ``restarted``."""
        if not self.all:
            return
        yield "-- 7. sequences back to their START; setval comes last, since it can't be undone"
        for i, sequence in self._cached:
            sql = qualified(sequence.schema, sequence.sequence)
            start = self._starts[sequence.key]
            yield f"""IF (SELECT s.is_called OR s.last_value <> {start} FROM {sql} s) THEN
    ALTER SEQUENCE {sql} RESTART; restarted := restarted || {i};
END IF;"""
        if not self._plain:
            return
        if not known:
            yield f"restarted := restarted || {self.moved()};"
        yield f"""IF restarted <> '{{}}' THEN
    PERFORM pg_catalog.setval(u.o, u.s, false) FROM unnest({self._arrays()}) u(o, s, i)
      WHERE u.i = ANY (restarted);
END IF;"""

    def _arrays(self) -> str:
        """Oids, STARTs and positions of the plain ones."""
        starts = ",".join(str(self._starts[sequence.key]) for _, sequence in self._plain)
        positions = ",".join(str(i) for i, _ in self._plain)
        oids = oid_array(sequence.key for _, sequence in self._plain)
        return f"{oids}, '{{{starts}}}'::int8[], '{{{positions}}}'::int[]"

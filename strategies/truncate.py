"""TRUNCATE of everything."""

from __future__ import annotations

from typing import ClassVar

from cleaner.spi import Plan, Strategy, Target, Truncate

from ._common import plan, refuse_to_reach_outside


class TruncateAll(Strategy):
    """Truncates all tables of the target in one statement, and restarts their sequences.

    It empties what DELETE can't (row-level security, rules, triggers) and gives the pages back.
    It costs about a millisecond a table whatever the table holds, and waits for every reader.
    """

    name: ClassVar[str] = "truncate"

    def refusal(self, target: Target) -> str | None:
        for table in target.tables:
            if table.untruncatable and not any(key.parent == table.key for key in target.outside):
                return f"truncate can't empty {table.name}: {table.untruncatable}"
        return None

    def plan(self, target: Target) -> Plan:
        refuse_to_reach_outside(target)
        keys = {table.key for table in target.tables}
        restarted = {sequence.key for sequence in target.sequences}
        owned = {sequence.key for sequence in target.database.sequences if sequence.owner in keys}
        return plan(self.name, target, Truncate(target.tables, restart_identity=owned <= restarted))

"""The cheapest way for each table: the default."""

from __future__ import annotations

from typing import ClassVar

from cleaner.spi import Empty, Plan, Strategy, Target

from ._common import plan


class Auto(Strategy):
    """Touches only tables that hold rows, in one round trip, by the cheapest means for each.

    That is DELETE for few rows, TRUNCATE for many or where a DELETE would be swallowed (rules,
    row-level security, a publication). Its cost follows what the test wrote.
    """

    name: ClassVar[str] = "auto"

    def refusal(self, target: Target) -> str | None:
        for table in target.tables:
            if table.undeletable and table.untruncatable:
                return f"nothing can empty {table.name}: {table.undeletable}; {table.untruncatable}"
        return None

    def plan(self, target: Target) -> Plan:
        return plan(self.name, target, Empty(target.groups, truncate=True))

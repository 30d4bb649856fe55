"""Ordered DELETEs."""

from __future__ import annotations

from typing import ClassVar

from cleaner.spi import Empty, Plan, Strategy, Target

from ._common import plan, undeletable


class OrderedDelete(Strategy):
    """Deletes from the tables that hold rows, children before parents, cycles in one statement.

    It needs no privilege but DELETE, no readers are waited for, and its cost follows the number
    of rows; after large tests it is slower than ``auto``, which may truncate.
    """

    name: ClassVar[str] = "delete"

    def refusal(self, target: Target) -> str | None:
        return undeletable(target, self.name)

    def plan(self, target: Target) -> Plan:
        return plan(self.name, target, Empty(target.groups))

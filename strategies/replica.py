"""DELETEs with foreign keys and triggers switched off."""

from __future__ import annotations

from typing import ClassVar

from cleaner.spi import Empty, Plan, Strategy, Target

from ._common import plan, undeletable


class ReplicaDelete(Strategy):
    """Deletes under ``session_replication_role = replica``, set for the transaction only.

    No foreign key is checked and no trigger fires, which makes it the fastest way to delete many
    rows that others refer to. The role needs to be superuser, or GRANT SET ON PARAMETER.
    """

    name: ClassVar[str] = "replica"

    def refusal(self, target: Target) -> str | None:
        if target.database.no_replica:
            return f'{target.database.no_replica}; or strategy = "auto", which needs neither'
        return undeletable(target, self.name)

    def plan(self, target: Target) -> Plan:
        return plan(self.name, target, Empty(target.groups, replica=True))

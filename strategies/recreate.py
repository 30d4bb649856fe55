"""A new database from the template of the baseline."""

from __future__ import annotations

from typing import ClassVar

from cleaner.spi import Plan, Recreate, Strategy, Target


class RecreateDatabase(Strategy):
    """Drops the database and clones it from a ``template``, by default the one that ``capture()``
    makes.

    For tests that change the schema: nothing they did survives, whatever it was. It ends every
    session on the database, takes tens of milliseconds, and needs a role with CREATEDB.
    """

    name: ClassVar[str] = "recreate"
    recreates: ClassVar[bool] = True

    def __init__(self, template: str = "") -> None:
        self.template = template

    def refusal(self, target: Target) -> str | None:
        return target.database.no_recreate or None

    def plan(self, target: Target) -> Plan:
        return Plan(self.name, (Recreate(self.template),))

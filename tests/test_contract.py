"""The contract suite, run as a third party would; for the built-in strategies see the matrix."""

from __future__ import annotations

from typing import ClassVar

from cleaner.spi import Plan, Restart, Strategy, Target, Truncate
from cleaner.testing import StrategyContract


class TruncateGroupByGroup(Strategy):
    """A third party's: made of the SPI's steps alone."""

    name: ClassVar[str] = "group by group"

    def plan(self, target: Target) -> Plan:
        return Plan(
            self.name,
            (Truncate(target.tables, restart_identity=False), Restart(target.sequences)),
            warnings=target.warnings,
        )

    def refusal(self, target: Target) -> str | None:
        return "it would reach outside; exclude the parents too" if target.outside else None


class TestThirdParty(StrategyContract):
    strategy = TruncateGroupByGroup()

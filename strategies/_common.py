"""What several of the built-in strategies need."""

from __future__ import annotations

from cleaner.errors import ExcludedTableError
from cleaner.spi import Plan, Restart, Step, Target


def plan(strategy: str, target: Target, *steps: Step) -> Plan:
    """The plan of ``steps``, with the sequences put back last."""
    restart = (Restart(target.sequences),) if target.sequences else ()
    return Plan(strategy, (*steps, *restart), warnings=target.warnings)


def undeletable(target: Target, name: str) -> str | None:
    """Why DELETE can't empty every table of the target, with the remedy; None if it can."""
    for table in target.tables:
        if table.undeletable:
            return (
                f"{name} can't empty {table.name}: {table.undeletable}"
                + ("" if table.untruncatable else '; strategy = "auto" can, by TRUNCATE')
            )  # fmt: skip
    return None


def refuse_to_reach_outside(target: Target) -> None:
    """Raise ExcludedTableError if truncating the target would empty a table outside of it."""
    if not target.outside:
        return
    relation = target.database.relation
    reached = sorted(
        {f"{relation(k.child).name} (refers to {relation(k.parent).name})" for k in target.outside}
    )
    raise ExcludedTableError(
        f"TRUNCATE ... CASCADE would also empty {', '.join(reached)}, outside the target.",
        "the table is excluded, or the metadata does not know it, but its foreign key reaches in",
        'strategy = "auto" (deletes, and keeps such tables), or exclude the parents too',
    )

"""A program run: one transaction, in which nobody else can write.

Foreign keys are off, and triggers that would fire are dropped and made again, so every statement
does what it says and nothing else; what refers to the target from outside is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from cleaner.dialects.base import Done
from cleaner.dialects.excluded import lacks, reaches_outside
from cleaner.dialects.sqlite.facts import Ask
from cleaner.dialects.sqlite.program import Counter, Program, Unit, is_empty, put_back
from cleaner.errors import CleanerError, NotCleanError, Survivor
from cleaner.retry import Transient


def clean(ask: Ask, program: Program) -> Done:
    """Run it in the transaction that was begun."""
    held = looked(ask, program)
    for unit in held:
        for key, guard in unit.guards:
            if ask(guard)[0][0]:
                database = program.target.database
                ours = database.relation(key.child) in program.target.tables
                raise lacks(database, key) if ours else reaches_outside(database, key)
    triggers = list(dict.fromkeys(trigger for unit in held for trigger in unit.facts.triggers))
    _run(ask, (trigger.drop for trigger in triggers))
    checked = any(unit.captured and unit.facts.checked for unit in held)
    with _unchecked(ask) if checked else nullcontext():
        for unit in held:
            _run(ask, unit.statements)
    _run(ask, (trigger.create for trigger in triggers))
    _look_again(ask, held)
    refreshed = tuple(_refreshed(ask, program, held))
    moved = _moved(ask, program)
    for book in dict.fromkeys(counter.book for counter in moved):
        _run(ask, put_back(book, [counter for counter in moved if counter.book == book]))
    return Done(
        tables=tuple(unit.relation.name for unit in held),
        truncated=tuple(unit.relation.name for unit in held if unit.always),
        sequences=tuple(counter.sequence.name for counter in moved),
        refreshed=refreshed,
    )


def looked(ask: Ask, program: Program) -> list[Unit]:
    """Those that are to be put back, in the order of the program."""
    held = {unit for unit in program.units if unit.always}
    for look, units in program.looks:
        held |= {unit for unit, answer in zip(units, ask(look)[0], strict=True) if answer}
    return [unit for unit in program.units if unit in held] if held else []


def positions(ask: Ask, books: Iterable[str]) -> dict[tuple[str, str], int]:
    """What AUTOINCREMENT of each table goes on from, by sqlite_sequence and name."""
    return {
        (book, str(name)): int(position or 0)
        for book in dict.fromkeys(books)
        for name, position in ask(f"SELECT name, seq FROM {book}")
    }


def _moved(ask: Ask, program: Program) -> list[Counter]:
    now = positions(ask, program.books)
    away = {place for place, position in now.items() if position}  # few of them have moved
    return [
        counter
        for place in sorted(away | program.positioned)
        if (counter := program.counters.get(place)) and now.get(place, 0) != counter.position
    ]


def _run(ask: Ask, statements: Iterable[str]) -> None:
    for statement in statements:
        ask(statement)


@contextmanager
def _unchecked(ask: Ask) -> Iterator[None]:
    """Rows that were captured go back whatever a CHECK says of them now."""
    pragma = "PRAGMA ignore_check_constraints"
    if ask(pragma)[0][0]:
        yield
        return
    ask(f"{pragma} = ON")
    try:
        yield
    finally:
        ask(f"{pragma} = OFF")


def _refreshed(ask: Ask, program: Program, held: Sequence[Unit]) -> Iterator[str]:
    """The indexes that are made anew: of rows that were put back, and those that a test has
    written to by itself.
    """
    changed = {unit.relation.key for unit in held}
    for relation, index in program.indexes:
        if is_empty(relation, program.target):
            stale = bool(ask(f"SELECT {index.look}")[0][0])
        else:
            stale = bool(changed & {*relation.reads}) or not index.is_in_step(ask)
        if stale:
            try:
                ask(index.rebuild)
            except Transient:
                raise
            except Exception as error:
                raise CleanerError(
                    f"The index {relation.name} can't be made anew from {index.content}: {error}",
                    f"{index.content} has not the columns, or the connection not the tokenizer, "
                    "that it was made for",
                    f'exclude = ["{relation.name}"]',
                ) from error
            yield relation.name


def _look_again(ask: Ask, held: Sequence[Unit]) -> None:
    """Raise NotCleanError where the module of a virtual table has kept rows."""
    virtual = [unit for unit in held if unit.facts.module]
    for unit in virtual:
        if ask(f"SELECT {unit.look}")[0][0]:
            rows = None if unit.captured or unit.facts.rows_elsewhere else _count(ask, unit)
            why = f"the module {unit.facts.module} keeps them"
            raise NotCleanError.of((Survivor(unit.relation.name, rows, why),))


def _count(ask: Ask, unit: Unit) -> int:
    return int(ask(f"SELECT count(*) FROM {unit.facts.sql}")[0][0])

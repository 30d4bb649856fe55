"""Random schemas with random rows: after a clean by any strategy, nothing is left.

``CLEANER_EXAMPLES=5000 pytest tests/test_random_schemas.py`` tries more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import observe
from support.database import STRATEGIES, Database
from support.random_schema import Schema, schemas

from cleaner import Cleaner
from cleaner.errors import StrategyRefusedError

EXAMPLES = int(os.environ.get("CLEANER_EXAMPLES", "40"))


@pytest.fixture
def cleaners(database: Database) -> Iterator[dict[tuple[str, bool], Cleaner]]:
    """Each strategy as superuser and as owner; they stay for all examples, as in a real suite."""
    database.execute(f'GRANT CREATE ON DATABASE "{database.name}" TO {database.role}')
    made = {
        (strategy, plain): database.cleaner(
            strategy=strategy, role=database.role if plain else "postgres", lock_timeout=2
        )
        for strategy in STRATEGIES
        for plain in (False, True)
        if not (plain and strategy == "replica")
    }
    yield made
    for cleaner in made.values():
        cleaner.close()
    database.execute(f'REVOKE CREATE ON DATABASE "{database.name}" FROM {database.role}')


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_left_of_any_rows_in_any_schema(
    strategy: str, database: Database, cleaners: dict[tuple[str, bool], Cleaner]
) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(schemas(), st.booleans(), st.booleans())
    def check(schema: Schema, plain: bool, twice: bool) -> None:
        plain = plain and strategy != "replica"
        role = database.role if plain else "postgres"
        cleaner = cleaners[strategy, plain]
        with database.connect() as connection:
            try:
                connection.execute(f"SET ROLE {role}")
                connection.execute(";".join(schema.ddl).encode())
                connection.execute("RESET ROLE")
                before = observe.schema_text(connection) if twice else ""  # it takes its time
                for _ in range(1 + twice):
                    if schema.rows:
                        connection.execute(";".join(schema.rows).encode())
                    held = {name for name, count in observe.counts(connection).items() if count}
                    try:
                        report = cleaner.clean()
                    except StrategyRefusedError as refusal:
                        # The one thing that can't be deleted from, whatever one tries.
                        if strategy in ("delete", "replica") and "GENERATED ALWAYS" in refusal.what:
                            return
                        raise
                    left = {n: c for n, c in observe.counts(connection).items() if c}
                    assert not left, (held, report)
                    assert not [
                        (name, state)
                        for name, state in observe.sequences(connection).items()
                        if state[:2] != (state[2], False)
                    ]
                    cleaner.verify()
                assert not twice or observe.schema_text(connection) == before
            finally:
                connection.execute("RESET ROLE")
                connection.execute(";".join(schema.drop).encode())

    check()

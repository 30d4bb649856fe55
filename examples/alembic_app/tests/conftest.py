from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

SETTINGS = Path(__file__).parents[1] / "pyproject.toml"


@pytest.fixture(scope="session")
def cleaner_setup() -> Callable[[Engine], None]:
    def setup(engine: Engine) -> None:
        command.upgrade(Config(toml_file=SETTINGS, attributes={"engine": engine}), "head")

    return setup


@pytest.fixture
def alembic() -> Config:
    return Config(toml_file=SETTINGS)

from collections.abc import Iterator

import pytest
from factories import Factory
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from blog import create_app
from blog.models import db


@pytest.fixture(scope="session")
def app() -> Iterator[Flask]:
    app = create_app()
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def context(app: Flask) -> Iterator[None]:
    """For tests that use ``db.session`` themselves."""
    with app.app_context():
        yield


@pytest.fixture
def make(cleaner_engine: Engine) -> Factory:
    return Factory(cleaner_engine)

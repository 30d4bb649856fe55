"""The environment variables that tell an application where its test database is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import URL


class Variables:
    """Those that the setting ``export`` names, and ``ours``, which are settings themselves.

    An entry is a variable's name, or NAME=dialect+driver where the application takes another.
    """

    def __init__(self, exported: tuple[str, ...], ours: tuple[str, ...] = ()) -> None:
        self._exported, self._ours = exported, ours
        self._before: dict[str, str | None] = {}

    def tell(self, url: URL, *, configured: bool = False) -> None:
        """Have them lead to ``url``; with that of the ``configured`` database only those that the
        setting names.
        """
        for entry in self._exported if configured else (*self._ours, *self._exported):
            variable, _, driver = entry.partition("=")
            told = url.set(drivername=driver) if driver else url
            self._before.setdefault(variable, os.environ.get(variable))
            os.environ[variable] = told.render_as_string(hide_password=False)

    @contextmanager
    def telling(self, url: URL) -> Iterator[None]:
        """The same, for as long as the body runs."""
        now = {variable: os.environ.get(variable) for variable in self._before}
        self.tell(url)
        try:
            yield
        finally:
            _set({**self._before, **now})

    def restore(self) -> None:
        """Have them as they were in the beginning."""
        _set(self._before)
        self._before = {}


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

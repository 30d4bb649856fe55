"""Which tables the user's models name: metadata in any of its forms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from importlib import import_module

from sqlalchemy import MetaData

from cleaner.errors import SettingsError

TableName = tuple[str | None, str]  # schema (None: the first on the search_path), table


class Models:
    """The metadata that ``source`` stands for; None stands for whatever the database holds.

    ``source`` is a MetaData, a registry, a declarative base, SQLModel, anything else with a
    ``metadata`` (or Flask-SQLAlchemy's ``metadatas``), ``"package.module:attribute"``, or a
    sequence of these. It is looked at anew for each clean, so models that are imported later
    count too. ``schemas`` is SQLAlchemy's ``schema_translate_map``: where the engine has the tables
    of a schema.
    """

    def __init__(
        self, source: object, schemas: Mapping[str | None, str | None] | None = None
    ) -> None:
        self._source, self._schemas = source, schemas or {}
        self._resolved: list[MetaData] | None = None

    @property
    def given(self) -> bool:
        """Whether there is metadata at all."""
        return self._source is not None

    @property
    def metadata(self) -> list[MetaData]:
        """The MetaData objects, each once. Raises SettingsError where there are none."""
        if self._resolved is None:
            self._resolved = list(dict.fromkeys(_metadata(self._source)))
        return self._resolved

    def known(self) -> tuple[frozenset[str], ...]:
        """What differs as soon as a table was added or removed. Cheap: asked for each clean."""
        return tuple(frozenset(metadata.tables) for metadata in self.metadata)

    def tables(self) -> frozenset[TableName] | None:
        """(schema, name) of every table known by now, or None without metadata."""
        if not self.given:
            return None
        return frozenset(
            (self._schemas.get(table.schema, table.schema), table.name)
            for metadata in self.metadata
            for table in metadata.tables.values()
        )


def _metadata(source: object) -> Iterator[MetaData]:
    if source is None:
        return
    if isinstance(source, MetaData):
        yield source
    elif isinstance(source, str):
        yield from _metadata(_imported(source))
    elif isinstance(many := getattr(source, "metadatas", None), Mapping):
        yield from many.values()
    elif isinstance(one := getattr(source, "metadata", None), MetaData):
        yield one
    elif isinstance(source, (SequenceOf, set, frozenset)) and not isinstance(source, bytes):
        members: Iterable[object] = source
        for member in members:
            yield from _metadata(member)
    else:
        raise SettingsError(
            f"metadata is {source!r}, in which there are no tables to find.",
            "it is neither a MetaData, nor a registry, nor a declarative base",
            'metadata = "yourapp.models:Base" (the class that your models inherit from)',
        )


def _imported(path: str) -> object:
    module_name, colon, attribute = path.partition(":")
    remedy = 'metadata = "package.module:attribute", for instance "yourapp.models:Base"'
    if not (module_name and colon and attribute):
        raise SettingsError(
            f"metadata = {path!r} does not say where the models are.",
            "the colon between module and attribute is missing",
            remedy,
        )
    try:
        found: object = import_module(module_name)
    except ImportError as error:
        raise SettingsError(
            f"metadata = {path!r} can't be imported: {error}.",
            "the package is not installed here, nor in a directory that Python looks in",
            f'{remedy}; under pytest: pythonpath = ["."] in [tool.pytest.ini_options]',
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise SettingsError(
                f"metadata = {path!r}: there is no {part!r} in {module_name}.",
                "a misspelt name",
                remedy,
            ) from error
    return found

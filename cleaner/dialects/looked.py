"""What was found at the last look at a database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from cleaner.spi import Database

Found = TypeVar("Found")


class Looked(ABC, Generic[Found]):
    """Of a session: its ``catalog`` is looked up when first needed, and kept."""

    _catalog: Found | None = None

    @abstractmethod
    def look(self) -> Database:
        """Look, and keep what is found as ``_catalog``."""

    @property
    def catalog(self) -> Found:
        """What there was at the last look."""
        if self._catalog is None:
            self.look()
        assert self._catalog is not None
        return self._catalog

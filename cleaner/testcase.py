"""For suites that are made of ``unittest.TestCase``, under whatever runner."""

from __future__ import annotations

import threading
import unittest
from typing import ClassVar

from cleaner.api import Cleaner

__all__ = ["CleanDatabaseMixin"]


class CleanDatabaseMixin(unittest.TestCase):
    """The database is at its baseline before and after each test.

    from cleaner.testcase import CleanDatabaseMixin

    class TestOrders(CleanDatabaseMixin, unittest.TestCase):
        ...

    The cleaner comes from the settings and is shared by all test cases of the process; a class
    may bring its own as ``cleaner = Cleaner(...)``. Cleaning comes after ``tearDown`` and after
    the cleanups that the test registers. Under pytest it is the fixture ``clean_database`` that
    cleans, on the database of the worker, for classes without a cleaner of their own.
    """

    cleaner: ClassVar[Cleaner | None] = None
    cleaned_by_pytest: ClassVar[bool] = False
    """Whether pytest's plug-in cleans the worker's database around each test instead."""

    _shared: ClassVar[Cleaner | None] = None
    _making: ClassVar[threading.Lock] = threading.Lock()

    def setUp(self) -> None:
        if self.cleaned_by_pytest:
            super().setUp()
            return
        chosen = self.cleaner or self._from_settings()
        chosen.clean()
        self.addCleanup(chosen.clean)
        super().setUp()

    @staticmethod
    def _from_settings() -> Cleaner:
        with CleanDatabaseMixin._making:
            if CleanDatabaseMixin._shared is None:
                CleanDatabaseMixin._shared = Cleaner()
            return CleanDatabaseMixin._shared

"""cleaner puts a test database back to its baseline between tests."""

from cleaner import errors
from cleaner.api import Cleaner
from cleaner.settings import Settings
from cleaner.spi import Plan, Report

__all__ = ["Cleaner", "Plan", "Report", "Settings", "errors"]
__version__ = "0.1.0"

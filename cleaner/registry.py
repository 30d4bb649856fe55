"""Strategies by name, from the entry-point group ``cleaner.strategies``."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from cleaner.errors import SettingsError, UnknownStrategyError
from cleaner.spi import Strategy

GROUP = "cleaner.strategies"


@cache
def _entry_points() -> dict[str, EntryPoint]:
    # A scan of all installed distributions takes milliseconds.
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> list[str]:
    """The names of all installed strategies."""
    return sorted(_entry_points())


def create(strategy: str | Strategy, options: Mapping[str, object]) -> Strategy:
    """The strategy of that name, made with ``options``; an instance is returned as it is.

    Raises UnknownStrategyError for a name that nobody registered, SettingsError for an option
    that the strategy does not take.
    """
    if isinstance(strategy, Strategy):
        if options:
            raise SettingsError(
                f"strategy_options {dict(options)!r} came with a strategy that is made already.",
                "options go to the constructor of a strategy that is chosen by name",
                f"strategy={type(strategy).__name__}(...) with the options inside",
            )
        return strategy
    entry = _entry_points().get(strategy)
    if entry is None:
        near = get_close_matches(strategy, names(), 1)
        raise UnknownStrategyError(
            f"There is no strategy {strategy!r}; installed are {', '.join(names())}.",
            "a misspelt name, or the package that brings it is not installed",
            f'strategy = "{near[0] if near else "auto"}"',
        )
    factory = entry.load()
    try:
        made: Strategy = factory(**options)
    except TypeError as error:
        raise SettingsError(
            f"The strategy {strategy!r} does not take the options {dict(options)!r}: {error}.",
            "a misspelt option, or one of another strategy",
            "strategy_options = {} in [tool.cleaner]",
        ) from error
    return made

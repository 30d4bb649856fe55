"""Contenders take turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median, quantiles


@dataclass(frozen=True)
class Figure:
    """One contender against the first: the median of the ratios within each round."""

    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    rounds: int

    def against(self, other: Figure) -> Figure:
        """The same, relative to ``other``, which was measured at another time in this run."""
        factor = self.milliseconds / other.milliseconds
        return replace(self, ratio=factor, low=self.low * factor, high=self.high * factor)

    def __str__(self) -> str:
        return (
            f"{self.name:<42} {self.milliseconds:9.2f} ms  {self.ratio:8.2f} x "
            f" ({self.low:.2f} to {self.high:.2f})"
        )


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    prepare: Callable[[], object],
    rounds: int,
    warmup: int = 3,
) -> dict[str, Figure]:
    """Time each contender once a round after ``prepare()``; figures relative to the first.

    Ratios are taken within a round and their median is reported, with quartiles: a disturbance
    that lasts longer than a round cancels out, a shorter one is an outlier.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for turn in range(-warmup, rounds):
            for name, run in contenders.items():
                prepare()
                started = time.perf_counter()
                run()
                if turn >= 0:
                    times[name].append(time.perf_counter() - started)
    finally:
        gc.enable()
    base = next(iter(times.values()))
    figures = {}
    for name, own in times.items():
        ratios = [mine / other for mine, other in zip(own, base, strict=True)]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        figures[name] = Figure(name, median(own) * 1000, middle, low, high, len(own))
    return figures

"""The smallest part of a schedule that still fails: delta debugging (Zeller, Hildebrandt 2002) over its faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from .schedule import WARM_UP, Fault, Schedule

LONGEST_GAP = 10.0
"""Seconds: where faults between two were taken out, these two come nearer, but never closer than this to what they were apart."""
AFTERWARDS = 12.0
"""Seconds that a run goes on after its last fault."""


def shrink(
    schedule: Schedule, fails: Callable[[Schedule], bool], *, seconds: float, clock: Callable[[], float] = time.monotonic
) -> Schedule:
    """A schedule that was seen to fail, with as few faults as could be found before the time was up. At least one try is made.

    fails: runs a schedule, and says whether anything was wrong. What depends on chance may pass this time: then the larger one stays.
    """
    deadline = clock() + seconds
    best, faults, parts = schedule, schedule.faults, 2
    while len(faults) > 1:
        size = -(-len(faults) // parts)
        chunks = [faults[at : at + size] for at in range(0, len(faults), size)]
        candidates = [*chunks, *(_without(faults, chunk) for chunk in chunks if len(chunks) > 2)]
        for candidate in candidates:
            shorter = compressed(schedule, candidate)
            if fails(shorter):
                best, faults = shorter, candidate
                parts = 2 if len(candidate) <= size else max(parts - 1, 2)
                break
            if clock() > deadline:
                return best
        else:
            if parts >= len(faults):
                return best
            parts = min(2 * parts, len(faults))
        if clock() > deadline:
            return best
    return best


def _without(faults: tuple[Fault, ...], chunk: tuple[Fault, ...]) -> tuple[Fault, ...]:
    return tuple(fault for fault in faults if fault not in chunk)


def compressed(schedule: Schedule, faults: tuple[Fault, ...]) -> Schedule:
    """These faults in their order, without the long pauses between them."""
    at, before, moved = WARM_UP, None, []
    for fault in faults:
        if before is not None:
            at += min(fault.at - before, LONGEST_GAP)
        before = fault.at
        moved.append(replace(fault, at=round(at, 2)))
    return Schedule(schedule.seed, (at + AFTERWARDS) / 60, tuple(moved))

"""Which faults, when and to whom: a pure function of the length and the seed."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

RANKS = 4
STARTS = ("take_incarnation@0", "create_register@0")
"""Points at which a process that starts kills itself; the others are at a barrier, so many iterations after its start was ordered."""
BARRIERS = ("arrive", "propose_same_epoch", "won")
WARM_UP = 8.0  # seconds: the crew is founded meanwhile
EVERY = {"kill": 4.4, "stop": 14.0, "cut": 11.0, "store": 72.0}
"""Seconds from one fault of a kind to the next, on average."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to a rank, or to the store.

    at: seconds from the start; it takes place then or, where it would break the run's conditions (docs/soak.md), as soon as it no longer does.
    lasts: kill: until the restart; stop: until SIGCONT; store: until it is started again.
    detail: kill: "marked" or "unmarked", and "+POINT" when the next process kills itself there; cut: "now", "reply" or "request".
    """

    at: float
    kind: str
    rank: int = -1
    lasts: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class Schedule:
    seed: int
    minutes: float
    faults: tuple[Fault, ...]

    def counts(self) -> dict[str, int]:
        """How often each signal or cut is planned. A process that is to kill itself counts as a SIGKILL of its own."""
        kinds = Counter(fault.kind for fault in self.faults)
        kinds["self-kill"] = sum("+" in fault.detail for fault in self.faults)
        kinds["long stop"] = sum(fault.kind == "stop" and fault.lasts > HEARTBEAT_TIMEOUT for fault in self.faults)
        return dict(kinds)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


HEARTBEAT_TIMEOUT = 3.5


def plan(minutes: float, seed: int) -> Schedule:
    """The faults of a run of so many minutes. The same arguments give the same faults."""
    random_ = random.Random(seed)
    end = minutes * 60
    faults = []
    for kind, every in EVERY.items():
        at = WARM_UP + random_.uniform(0.2, 1.0) * min(every, end / 3)
        while at < end:
            faults.append(_fault(random_, kind, at))
            at += random_.uniform(0.6, 1.4) * every
    return Schedule(seed, minutes, tuple(sorted(faults, key=lambda fault: fault.at)))


def _fault(random_: random.Random, kind: str, at: float) -> Fault:
    at, rank = round(at, 2), random_.randrange(RANKS)
    if kind == "kill":
        detail = random_.choice(("marked", "marked", "unmarked"))
        if random_.random() < 0.15:
            point = (
                random_.choice(STARTS) if random_.random() < 0.4 else f"{random_.choice(BARRIERS)}@{random_.randrange(150, 260)}"
            )
            detail += f"+{point}"
        return Fault(at, kind, rank, round(random_.uniform(0, 1.5), 2), detail)
    if kind == "stop":
        long = random_.random() < 0.35
        lasts = random_.uniform(1, 3) + HEARTBEAT_TIMEOUT if long else random_.uniform(0.1, 2)
        return Fault(at, kind, rank, round(lasts, 2))
    if kind == "cut":
        return Fault(at, kind, rank, 0.0, random_.choice(("now", "reply", "request")))
    return Fault(at, kind, -1, round(random_.uniform(0, 1.5), 2))


def load(path: Path) -> Schedule:
    """A schedule that was written. Raises ValueError for a file that holds none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        faults = tuple(Fault(**fault) for fault in fields.pop("faults"))
        schedule = Schedule(faults=faults, **fields)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no schedule: {error}") from None
    for fault in faults:
        if fault.kind not in EVERY or (fault.kind != "store" and not 0 <= fault.rank < RANKS):
            raise ValueError(f"{path} is no schedule: {fault} is no fault of a crew of {RANKS} ranks")
    return schedule

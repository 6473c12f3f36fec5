"""What happened in a run, from the lines that its processes wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .schedule import Kill, Plan

Line = dict[str, Any]


@dataclass(frozen=True)
class Life:
    """One process: `rank`, started for the n-th time (`restarts`, from 0), and its lines in order."""

    rank: int
    restarts: int
    lines: tuple[Line, ...]

    @property
    def members(self) -> frozenset[str]:
        """Who it was in the crew."""
        return frozenset(line["me"] for line in self.lines if line["event"] == "decided")

    @property
    def finished(self) -> Line | None:
        return next((line for line in self.lines if line["event"] == "finished"), None)

    @property
    def last(self) -> Line:
        return self.lines[-1]


@dataclass(frozen=True)
class Decision:
    """An iteration as it was agreed on. `committed` speaks of its own update: what the record of the next iteration says."""

    number: int
    epoch: str
    participants: tuple[str, ...]
    winner: str | None
    at: float
    """When the first participant knew."""
    committed: bool | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(int(member.partition(".")[0]) for member in self.participants)


@dataclass(frozen=True)
class Fault:
    """A kill that took place."""

    kill: Kill
    life: Life
    at: float
    """When: the last sign of the process, so a little too early, and never too late."""
    recovered: float | None
    """When the first update was committed that was made without this process."""
    gone_at: int | None
    """The first iteration without this process."""
    back: float | None
    """When a new process of the rank took part."""
    back_at: int | None
    """In which iteration that was."""

    @property
    def recovery(self) -> float | None:
        """Seconds from the kill to the next update that counts."""
        return None if self.recovered is None else self.recovered - self.at


@dataclass
class History:
    """A whole run."""

    plan: Plan
    lives: list[Life]
    decisions: dict[int, Decision] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)

    @property
    def committed(self) -> list[Decision]:
        return [decision for _, decision in sorted(self.decisions.items()) if decision.committed]

    @property
    def survivors(self) -> list[Life]:
        return [life for life in self.lives if life.finished is not None]

    def epochs(self) -> list[list[Decision]]:
        """The decisions in order, those of the same epoch together."""
        runs: list[list[Decision]] = []
        for _, decision in sorted(self.decisions.items()):
            if not runs or runs[-1][-1].epoch != decision.epoch:
                runs.append([])
            runs[-1].append(decision)
        return runs

    def faults(self) -> list[Fault]:
        """The kills that took place, in order."""
        found = []
        for life in self.lives:
            kill = self.plan.kill_of(life.rank, life.restarts)
            if kill is None or life.finished is not None or not life.members or not self._hit(kill, life):
                continue
            at = life.last["t"]
            without = [d for d in self.decisions.values() if d.at >= at and not life.members & set(d.participants)]
            later = [self.decisions[d.number + 1].at for d in without if d.committed]
            new = [d for d in without if life.rank in d.ranks]
            found.append(
                Fault(
                    kill,
                    life,
                    at,
                    recovered=min(later, default=None),
                    gone_at=min((d.number for d in without), default=None),
                    back=min((d.at for d in new), default=None),
                    back_at=min((d.number for d in new), default=None),
                )
            )
        return sorted(found, key=lambda fault: fault.at)

    def _hit(self, kill: Kill, life: Life) -> bool:
        """Whether the last lines of the process are those of a kill at this place."""
        event, number = life.last["event"], life.last.get("iteration")
        if kill.place == "collective":
            return bool(event == "killed" and number == kill.iteration)
        if kill.place == "barrier":
            return bool(event in ("averaged", "failed") and number == kill.iteration)
        decided = self.decisions.get(kill.iteration)
        return decided is not None and decided.winner in life.members and number == kill.iteration - 1


def read(folder: Path, plan: Plan) -> History:
    """Reads the files of a run. Two processes that saw different things in one iteration are a contradiction."""
    lives = []
    for path in sorted(folder.glob("rank*.*.jsonl")):
        rank, restarts = path.stem.removeprefix("rank").split(".")
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last one, without its newline, was cut short
        if lines:
            lives.append(Life(int(rank), int(restarts), tuple(json.loads(line) for line in lines)))
    history = History(plan, lives)
    for line in sorted((line for life in lives for line in life.lines if line["event"] == "decided"), key=lambda line: line["t"]):
        decision = Decision(line["iteration"], line["epoch"], tuple(line["participants"]), line["winner"], line["t"])
        known = history.decisions.setdefault(decision.number, decision)
        if (known.epoch, known.participants, known.winner) != (decision.epoch, decision.participants, decision.winner):
            history.contradictions.append(f"iteration {decision.number}: {line['me']} saw {decision}, others {known}")
    for life in lives:
        for earlier, later in pairwise([line for line in life.lines if line["event"] == "decided"]):
            if later["iteration"] == earlier["iteration"] + 1:
                _note(history, earlier["iteration"], bool(later["committed"]), later["me"])
    return history


def _note(history: History, number: int, committed: bool, who: str) -> None:
    known = history.decisions[number]
    if known.committed is None:
        history.decisions[number] = Decision(**{**vars(known), "committed": committed})
    elif known.committed != committed:
        history.contradictions.append(f"iteration {number}: {who} was told committed={committed}, others the opposite")

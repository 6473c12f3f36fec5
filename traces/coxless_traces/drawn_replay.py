"""Failure traces of the drawn protocol on a real store: the as-drawn generators take the trace's steps, and the damage is looked at
where it is done. `same_schedule` then tries the same schedule on the hardened protocol.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from coxless import as_drawn
from coxless.protocol.operations import Add, Set, Wait
from coxless_model.drawn import Drawn
from coxless_model.machine import Action
from coxless_model.results import Trace
from coxless_model.store import PROBE, THERE, key_text

from .targets import Line, Target

ROUNDS = 60
"""So often everybody gets another turn, before a wait is said never to end."""


class Told(NamedTuple):
    """One line of the story."""

    rank: int
    step: str
    operation: str
    reply: object
    changed: str


@dataclass
class DrawnRank:
    rank: int
    world_size: int
    line: Line
    iteration: int = 0
    returned: list[int] = field(default_factory=list)
    steps: as_drawn.Steps | None = None
    operation: as_drawn.DrawnOperation | None = None
    restarting: bool = False

    def begin(self) -> None:
        """Train the iteration and go on to the next, or come back first."""
        restart = as_drawn.handle_rank_restart(self.rank)
        self.steps = restart if self.restarting else as_drawn.advance(self.rank, self.world_size, self.iteration)
        self.operation = next(self.steps)

    def resume(self, reply: object) -> None:
        assert self.steps is not None
        try:
            self.operation = self.steps.send(reply)
        except StopIteration as stop:
            self.steps = self.operation = None
            self.iteration = stop.value
            if not self.restarting:
                self.returned.append(stop.value)
            self.restarting = False


class Differs(AssertionError):
    """The as-drawn implementation does not do what the trace says."""


class DrawnReplay:
    def __init__(self, system: Drawn, target: Target) -> None:
        self.system = system
        self.target = target
        target.clear()
        self.ranks: dict[int, DrawnRank] = {r: self._new(r) for r in range(system.ranks)}
        self.winners: dict[int, list[int]] = defaultdict(list)
        """Who has read itself back from `consensus`, by the iteration it decides."""
        self.absent: list[str] = []
        self.stale: set[int] = set()

    def _new(self, rank: int) -> DrawnRank:
        return DrawnRank(rank, self.system.ranks, self.target.open())

    def close(self) -> None:
        for rank in self.ranks.values():
            rank.line.close()

    def story(self, trace: Trace) -> Iterator[Told]:
        for action in trace.actions:
            held = self.target.contents()
            reply = self.take(action)
            now = self.target.contents()
            changed = ", ".join(
                f"{key}: {held.get(key, 'missing')} → {now.get(key, 'missing')}"
                for key in sorted(held.keys() | now.keys())
                if held.get(key) != now.get(key)
            )
            call = "" if action.op is None else f"{action.op[0]} {key_text(action.op[1])}"
            yield Told(action.rank, action.name, call, reply, changed)

    def take(self, action: Action) -> object:
        match action.name:
            case "crash":
                self.ranks.pop(action.rank).line.close()
                return None
            case "restart":
                self.ranks[action.rank] = self._new(action.rank)
                self.ranks[action.rank].restarting = True
                return None
            case "go_stale":
                self.stale.add(action.rank)
                return None
        rank = self.ranks[action.rank]
        if rank.operation is None:
            rank.begin()
        operation = rank.operation
        assert operation is not None
        if operation.step != action.name:
            raise Differs(f"rank {rank.rank} stands before {operation.step}; the trace says {action.name}")
        given = {PROBE: None}.get(action.result, action.result) if isinstance(action.result, str) else action.result
        reply = self.perform(rank, operation, given)
        if action.name == "await_ready" and reply != (action.result == THERE):
            raise Differs(
                f"rank {rank.rank}: {key_text(('ready',))} is {'there' if reply else 'missing'}; the trace says otherwise"
            )
        if isinstance(operation, Add) and reply != action.result:
            raise Differs(f"rank {rank.rank}: the counter says {reply}; the trace says {action.result}")
        self._resume(rank, operation, reply)
        return reply

    def perform(self, rank: DrawnRank, operation: as_drawn.DrawnOperation, age: object) -> object:
        """On the real store; how old a heartbeat is, the trace says (a clock would have to be waited for)."""
        match operation:
            case as_drawn.SendHeartbeat(step, number):
                return rank.line.perform(Set(step, as_drawn.heartbeat(number), "beat"))
            case as_drawn.ReadHeartbeatAge():
                return age
            case Wait(_, key) if key not in self.target.contents():
                return False
        return rank.line.perform(operation)

    def _resume(self, rank: DrawnRank, operation: as_drawn.DrawnOperation, reply: object) -> None:
        k = rank.iteration
        rank.resume(reply)
        if operation.step == "read_consensus" and reply == str(rank.rank):
            self.winners[k + 1].append(rank.rank)
            arrived = self.target.contents().get(as_drawn.ARRIVED, "")
            for number in range(self.system.ranks):
                other = self.ranks.get(number)
                if other is None and f"{number}," in arrived:
                    self.absent.append(f"rank {rank.rank} advances to {k + 1} with rank {number}, which arrived and then died")
                elif other is None and as_drawn.heartbeat(number) in self.target.contents() and number not in self.stale:
                    self.absent.append(f"rank {rank.rank} advances to {k + 1} without rank {number}, whose heartbeat is fresh")
                elif other is not None and other.rank != rank.rank and not has_arrived(other, k):
                    counts = ", by an arrival of before" if str(number) in arrived.split(",") else ""
                    self.absent.append(f"rank {rank.rank} advances to {k + 1} without rank {number}, which is alive{counts}")

    def go_on(self) -> None:
        """Everybody who is alive takes turns, until each has returned or nothing moves any more."""
        goal = self.system.iterations
        for _ in range(ROUNDS):
            for rank in self.ranks.values():
                if rank.iteration >= goal and rank.operation is None:
                    continue
                if rank.operation is None:
                    rank.begin()
                operation = rank.operation
                assert operation is not None
                alive = isinstance(operation, as_drawn.ReadHeartbeatAge) and operation.rank in self.ranks
                self._resume(rank, operation, self.perform(rank, operation, "fresh" if alive else "stale"))

    def damage(self, broken: str) -> list[str]:
        """What can be seen of it now, on the store and in what the ranks returned."""
        seen = [f"iteration {k} has the winners {', '.join(map(str, who))}" for k, who in self.winners.items() if len(who) > 1]
        if broken == "S3":
            seen = list(self.absent)
        self.go_on()
        counter = int(self.target.contents().get(as_drawn.COUNTER, "0"))
        if broken in ("S1", "S2") and counter > self.system.iterations:
            seen.append(f"the counter says {counter} after {self.system.iterations} iteration(s): it moved by two")
        numbers = {rank.rank: rank.returned for rank in self.ranks.values() if rank.returned}
        if len({tuple(own) for own in numbers.values()}) > 1:
            told = "; ".join(f"rank {rank}: {', '.join(map(str, own))}" for rank, own in numbers.items())
            seen.append(f"the ranks returned different numbers ({told})")
        seen += [
            f"rank {rank} returned {number} twice: it trained a batch again"
            for rank, own in numbers.items()
            for number in sorted(set(own))
            if own.count(number) > 1
        ]
        for rank in self.ranks.values():
            if rank.operation is not None:
                seen.append(
                    f"rank {rank.rank} still stands before {rank.operation.step} after {ROUNDS} more turns: its wait never ends"
                )
        return seen


def has_arrived(rank: DrawnRank, iteration: int) -> bool:
    """At the barrier of this iteration, or beyond it."""
    if rank.iteration != iteration or rank.operation is None:
        return rank.iteration > iteration
    return rank.operation.step not in UNARRIVED


UNARRIVED = ("send_heartbeat", "signal_arrival", "read_last_iteration", "catch_up")

"""Failure traces of the drawn protocol on a real store: the as-drawn generators take the trace's steps, and the damage is looked at
where it is done. The same schedule is then tried on the hardened protocol.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from coxless import as_drawn, keys
from coxless.protocol import Operation, RankState, enter
from coxless.protocol import advance as advance_hardened
from coxless.protocol.operations import Add, Delete, ReadHeartbeat, Set, Wait
from coxless.records import parse_record
from coxless_model.drawn import Drawn
from coxless_model.machine import Action
from coxless_model.results import Trace
from coxless_model.store import PROBE, THERE, key_text

from .replay import Replica
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


# --- The same schedule, hardened ----------------------------------------------------------------------------------------


class Harmless(NamedTuple):
    steps: int
    iterations: dict[int, str]
    """What was decided, iteration by iteration: one record each."""


def hardened_on(system: Drawn, trace: Trace, target: Target) -> Harmless:
    """The same ranks take turns in the same order, crash and restart at the same places; then everybody who is alive gets turns
    until all have come as far as the trace's bound. Raises AssertionError where a promise is broken."""
    target.clear()
    ranks: dict[int, Replica] = {}
    born = 0
    decided: dict[int, str] = {}
    last: dict[int, int] = {}
    steps = 0

    def begin(rank: int) -> None:
        nonlocal born
        born += 1
        ranks[rank] = Replica(RankState(rank, system.ranks, 1, f"{born:x}", f"{born:x}"), target.open())
        ranks[rank].start(enter(ranks[rank].state))

    def turn(rank: int, patient: bool) -> None:
        nonlocal steps
        replica = ranks[rank]
        if replica.operation is None:
            if last.get(rank, 0) >= system.iterations:
                return
            replica.start(advance_hardened(replica.state, "o"))
        operation: Operation | None = replica.operation
        assert operation is not None
        steps += 1
        replica.decision = None
        if isinstance(operation, Wait) and operation.key not in target.contents():
            if not patient:
                replica.resume(False)
        elif isinstance(operation, ReadHeartbeat):
            other = ranks.get(operation.member.rank)
            replica.resume(other is None or other.state.me != operation.member)
        else:
            replica.resume(replica.line.perform(operation))
        decision = replica.decision
        if decision is not None:
            k, text = decision.record.iteration, str(decision.record._replace(attention=False))
            assert decided.setdefault(k, text) == text, f"iteration {k} has two records"
            assert k > last.get(rank, 0), f"rank {rank} went from {last.get(rank, 0)} to {k}"
            last[rank] = k
            for key in replica.state.deletions:
                replica.line.perform(Delete("clean_up", key))
            replica.state.deletions = []

    for rank in range(system.ranks):
        begin(rank)
    for action in trace.actions:
        if action.name == "crash":
            ranks.pop(action.rank).line.close()
        elif action.name == "restart":
            begin(action.rank)
        elif action.rank in ranks:
            turn(action.rank, patient=True)
    for number in range(ROUNDS * 4):
        for rank, replica in list(ranks.items()):
            replica.join_timeout = number > ROUNDS
            turn(rank, patient=number % 3 != 0)
    assert all(last.get(rank, 0) >= system.iterations for rank in ranks), f"somebody is stuck: {last}"
    register = parse_record(target.contents()[keys.REGISTER])
    assert sorted(decided) == list(range(1, max(decided) + 1)), f"iterations were skipped: {sorted(decided)}"
    assert register.iteration == max(decided)
    for replica in ranks.values():
        replica.line.close()
    return Harmless(steps, decided)

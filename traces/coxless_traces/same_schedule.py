"""The schedule of a failure trace of the drawn protocol, tried on the hardened one: the same ranks take turns in the same order, crash
and restart at the same places. Whatever is promised and can be seen from the outside is looked for after each operation.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from coxless import keys
from coxless.errors import CoxlessError
from coxless.protocol import Decision, RankState, advance, enter
from coxless.protocol.operations import Delete, ReadHeartbeat, Wait
from coxless.records import Listed, Member, Record, parse_members, parse_record
from coxless_model.drawn import Drawn
from coxless_model.results import Trace

from .replay import Replica
from .targets import Target

ROUNDS = 240
"""So many turns everybody gets once the schedule is over, before a rank that has not come to the end is said to be stuck."""
FOUNDING = 60
"""The turns after which the join timeout is over."""


class Harmless(NamedTuple):
    steps: int
    iterations: dict[int, str]
    """What was decided, iteration by iteration: one record each."""


class Harm(Exception):
    """The hardened protocol broke a promise; the message says which, and how."""


def harm(promise: str, what: str) -> NoReturn:
    raise Harm(f"{promise}: {what}")


@dataclass
class Witness:
    """What can be seen of the run: the register's values, the lists they point at, and what each rank was told."""

    decided: dict[int, Record] = field(default_factory=dict)
    lists: dict[int, tuple[Listed, ...]] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)
    """The latest iteration of each rank, over its restarts."""
    trained: set[Member] = field(default_factory=set)
    """Who has made an update, and so holds the state."""
    failed: set[Member] = field(default_factory=set)
    """Whose step failed since the last decision."""
    alive: set[Member] = field(default_factory=set)
    register: Record | None = None
    world_size: int = 0
    waited: bool = False
    """The join timeout is over."""

    def look(self, contents: dict[str, str]) -> None:
        """At the store, after each operation."""
        text = contents.get(keys.REGISTER)
        if text is None:
            if self.register is not None:
                harm("S2", f"the register is gone, which said {self.register}")
            return
        record, before = parse_record(text), self.register
        self.register = record
        if before is None or record.same_decision(before):
            return
        if record.iteration != before.iteration + 1:
            promise = "S1" if record.iteration == before.iteration else "S2"
            harm(promise, f"the register went from iteration {before.iteration} to {record.iteration}: {before}, then {record}")
        members = self.lists.get(before.iteration, ())
        if record.epoch != before.epoch:
            listed = contents.get(keys.members(record.epoch))
            if listed is None:
                harm("S4", f"iteration {record.iteration} names the list {record.epoch}, which is not there")
            members = _listed(record.epoch, listed)
        self._decision(record, self.lists.get(before.iteration, ()), members, kept=record.epoch == before.epoch)

    def _decision(self, record: Record, before: tuple[Listed, ...], members: tuple[Listed, ...], *, kept: bool) -> None:
        k = record.iteration
        self.decided[k], self.lists[k] = record._replace(attention=False), members
        now = [member for member, _ in members]
        for member, _ in before:
            if member in self.alive and member not in now:
                harm("S3", f"iteration {k} goes on without {member}, which is alive and was suspected by nobody")
        if k == 1 and len(now) < self.world_size and not self.waited:
            harm("S3", f"{', '.join(map(str, now))} founded the job without waiting for the other ranks")
        for member in now:
            if any(other.replaces(member) for other, _ in before):
                harm("S6", f"iteration {k} lists {member} in the place of a newer process")
        goes_on = [member for member, _ in before if member in now]
        if record.committed != (bool(goes_on) and not self.failed.intersection(goes_on)):
            votes = ", ".join(f"{member} {'failed' if member in self.failed else 'ok'}" for member in goes_on)
            harm("S8", f"iteration {k} says committed={record.committed}; of those who voted go on: {votes or 'nobody'}")
        self.failed = set()
        holders = [member for member, holds in members if holds or kept]  # keeping an epoch says so of all
        for member in holders:
            if member not in self.trained:
                harm("S7", f"iteration {k} lists {member} with a model state that it never had")
            if member not in goes_on:
                harm("S7", f"iteration {k} lists {member} with a model state that lacks an update: it was not in {k - 1}")
        if self.trained.intersection(goes_on) and not holders:
            harm("S7", f"nobody is listed with the model state in iteration {k}, though one who held it goes on")

    def told(self, rank: int, decision: Decision) -> None:
        """A rank has a decision."""
        k = decision.record.iteration
        if decision.record._replace(attention=False) != self.decided.get(k):
            harm("S1", f"rank {rank} was told {decision.record}; decided for iteration {k} was {self.decided.get(k)}")
        if decision.members != self.lists[k]:
            harm("S1", f"rank {rank} takes other members for those of iteration {k} than the register's list says")
        if all(member != decision.me for member, _ in decision.members):
            harm("S4", f"rank {rank} trains iteration {k} without being listed")
        if k <= self.reached.get(rank, 0):
            harm("S5", f"rank {rank} went from iteration {self.reached[rank]} to {k}")
        self.reached[rank] = k


def _listed(epoch: str, text: str) -> tuple[Listed, ...]:
    """The list of this epoch. One with two processes of a rank, which the library refuses to read, is harm of its own (S6)."""
    ranks = [entry.partition(".")[0] for entry in text.split(",") if entry]
    if len(set(ranks)) < len(ranks):
        harm("S6", f"the list of the epoch {epoch} has two processes of a rank: {text}")
    return parse_members(epoch, text)


class SameSchedule:
    def __init__(self, system: Drawn, target: Target) -> None:
        target.clear()
        self.system = system
        self.target = target
        self.witness = Witness(world_size=system.ranks)
        self.ranks: dict[int, Replica] = {}
        self.steps = 0
        self._born = 0
        for rank in range(system.ranks):
            self.begin(rank)

    def close(self) -> None:
        for replica in self.ranks.values():
            replica.line.close()

    def begin(self, rank: int) -> None:
        self._born += 1
        state = RankState(rank, self.system.ranks, 1, f"{self._born:x}", f"{self._born:x}")
        self.ranks[rank] = Replica(state, self.target.open())
        self.ranks[rank].start(enter(state))

    def crash(self, rank: int) -> None:
        replica = self.ranks.pop(rank)
        self.witness.alive.discard(replica.state.me)
        replica.kill()

    def at_the_end(self, rank: int) -> bool:
        return self.witness.reached.get(rank, 0) >= self.system.iterations and self.ranks[rank].operation is None

    def turn(self, rank: int, *, patient: bool) -> None:
        """One operation of the rank. A wait for what is not there ends with a turn in which it is not patient."""
        if self.at_the_end(rank):
            return
        replica = self.ranks[rank]
        try:
            self._turn(rank, replica, patient=patient)
        except CoxlessError as error:
            harm("L1", f"rank {rank} gave up: {error}")
        if replica.stopped:
            harm("L2", f"rank {rank} ended as if it had been replaced, and nobody has taken its place")

    def _turn(self, rank: int, replica: Replica, *, patient: bool) -> None:
        if replica.operation is None:
            self.witness.trained.add(replica.state.me)
            replica.start(advance(replica.state, "o"))
        operation = replica.operation
        assert operation is not None
        self.steps += 1
        replica.decision = None
        if isinstance(operation, Wait) and operation.key not in self.target.contents():
            if not patient:
                replica.resume(False)
        elif isinstance(operation, ReadHeartbeat):
            replica.resume(operation.member not in self.witness.alive)
        else:
            reply = replica.line.perform(operation)
            self.witness.look(self.target.contents())
            replica.resume(reply)
        self.witness.alive.add(replica.state.me)
        decision: Decision | None = replica.decision
        if decision is not None:
            self.witness.told(rank, decision)
            for key in replica.state.deletions:
                replica.line.perform(Delete("clean_up", key))
                self.witness.look(self.target.contents())
            replica.state.deletions = []


def hardened_on(system: Drawn, trace: Trace, target: Target) -> Harmless:
    """Take the schedule's turns; then everybody who is alive gets turns until all have come as far as the trace's bound.

    Raises Harm where a promise is broken.
    """
    crew = SameSchedule(system, target)
    try:
        for action in trace.actions:
            if action.name == "crash":
                crew.crash(action.rank)
            elif action.name == "restart":
                crew.begin(action.rank)
            elif action.rank in crew.ranks:
                crew.turn(action.rank, patient=True)
        for number in range(ROUNDS):
            crew.witness.waited = number > FOUNDING
            for rank, replica in crew.ranks.items():
                replica.join_timeout = crew.witness.waited
                crew.turn(rank, patient=number % 3 != 0)
        for rank, replica in crew.ranks.items():
            if not crew.at_the_end(rank):
                step = "its training" if replica.operation is None else replica.operation.step
                harm("L1", f"rank {rank} still stands before {step} after {ROUNDS} more turns")
    finally:
        crew.close()
    return Harmless(crew.steps, {k: str(record) for k, record in sorted(crew.witness.decided.items())})

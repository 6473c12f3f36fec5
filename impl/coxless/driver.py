"""Runs protocol generators on a real store: performs their operations, answers their questions about time, keeps the deadline."""

import logging
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from . import keys
from .connection import REPLY_LIMIT, Connection
from .errors import CoxlessError, CrewEndedError, IterationTimeoutError, StoreUnreachableError
from .protocol import Decision, Operation, RankState, advance, recover
from .protocol.operations import (
    Add,
    Append,
    Barrier,
    CompareSet,
    ConnectionBroken,
    Delete,
    JoinTimedOut,
    Read,
    ReadHeartbeat,
    Set,
    Wait,
)
from .protocol.state import NOBODY
from .recording import Recorder, now
from .records import LEFT, Member, corrupt, parse_counter, parse_heartbeat
from .suspicion import ALL_LOOK, HeartbeatObserver, is_lookout

logger = logging.getLogger(__name__)

T = TypeVar("T")

BARRIER = keys.count(0).removesuffix("0:count")

_SHORTEST_WAIT = 0.005  # the store counts in milliseconds, and answers 0 with "not there"
_LOOK_LIMIT = 0.4

Watcher = Callable[[RankState, Operation, object], None]
"""Called after each operation, with its reply."""


class FastRun(NamedTuple):
    """What a recorded fast path (fast_path.py) has asked."""

    began: int
    k: int
    size: int
    expected: str
    desired: str


@dataclass(slots=True)
class Driver:
    """Owns the training thread's connection. One generator runs at a time.

    Whatever stops a run before its decision (the deadline, a store that is gone, an exception from a signal handler), the run can be
    continued, and whatever the generator does not know for certain then, it is told as a broken connection: from there it recovers, and
    asks everybody by name. So a rank is never counted twice at a barrier.
    """

    connection: Connection
    state: RankState
    observer: HeartbeatObserver
    patience: timedelta
    """The longest that a single wait may be: it is not interruptible by signals."""
    join_timeout: float
    """How long (s) founding waits for ranks that were never seen."""
    announce: Callable[[Member], None]
    """Told the member that this process is, each time it takes an incarnation."""
    watchers: list[Watcher]
    recorder: Recorder | None = None
    unfinished: bool = False
    """A run has begun that has not come to its decision."""
    in_doubt: bool = False
    """The generator does not stand before `_operation`: a reply may be lost, or the store's data, or the generator itself was interrupted."""
    _founding: tuple[str, float] = ("", 0.0)
    _left: set[Member] = field(default_factory=set)
    since: int = 0
    """The iteration from which the run began."""
    _generator: Generator[Operation, object, Decision] | None = None
    _operation: Operation | None = None
    _began: int = 0
    _wait: timedelta = timedelta(0)
    """The patience, or what is left until the deadline."""
    _woken_by: str = ""
    """The key that ended the last wait."""
    _announced: Member = NOBODY
    cut: FastRun | None = None
    """The fast path that is recorded and has not come to its line yet."""
    let_through: bool = False
    """The barrier of the last fast path let through."""
    recorded: int = 0
    """The last iteration whose decision was recorded."""
    _perform: dict[type, Callable[[Any], object]] = field(default_factory=dict)
    _watch: tuple[int, float] = (0, 0.0)
    """At which iteration somebody is missing, and since when (time.monotonic())."""
    _lookout: tuple[tuple[Member, ...], bool] = ((), True)
    """Whether this rank is one of those who look, as long as these are present."""

    def owes(self, number: int) -> bool:
        """Whether an advance from iteration `number` has begun and its decision was not fetched yet."""
        return self.unfinished or self._has_decided(number)

    def decided(self, number: int) -> Decision | None:
        """The decision after iteration `number`, if a run came to it and was interrupted before it could hand it over."""
        return self._finish() if self._has_decided(number) else None

    def _has_decided(self, number: int) -> bool:
        # Only deciding makes a rank a member of a later iteration.
        return self.state.is_member and self.state.record.iteration > number

    def fall_back(self, *replies: object) -> None:
        """Tell the generator what the fast path was told."""
        recorder = self.recorder
        if recorder is not None:
            recorder.vote(self.state)
        generator = advance(self.state, "o")
        operation = next(generator)
        try:
            for reply in replies:
                if recorder is not None and self.cut is not None:
                    recorder.operation(operation, reply, self.cut.began)
                operation = generator.send(reply)
        except StopIteration:  # a decision after all: of this epoch, with attention up again already
            self.cut, self.in_doubt = None, False
            return
        self.cut = None
        self._generator, self._operation, self.in_doubt = generator, operation, False

    def _record_what_was_cut(self) -> None:
        """The fast path writes its one line at its end. Where it does not come to that, what it did is told step by step."""
        cut, recorder = self.cut, self.recorder
        if cut is None or recorder is None:
            return
        self.cut = None
        recorder.vote(self.state)
        self._operation = Barrier("arrive", f"{BARRIER}{cut.k}:count", cut.size)
        self._began = cut.began
        if self.let_through:
            recorder.operation(self._operation, True, cut.began)
            self._operation = CompareSet("propose_same_epoch", keys.REGISTER, cut.expected, cut.desired)

    def run(self, generator: Generator[Operation, object, Decision] | None, *, deadline: float) -> Decision:
        """Run to the next decision; with None, continue where the last run stopped. `deadline` is on time.monotonic().

        Raises IterationTimeoutError and StoreUnreachableError at the deadline, and whatever the protocol raises.
        """
        state, recorder, perform = self.state, self.recorder, self._perform
        self.connection.deadline = deadline
        if generator is not None:
            self._start(generator)
        try:
            while True:
                left = deadline - time.monotonic()
                if left < 0:
                    if self.connection.broken:
                        self.in_doubt = True
                        self.connection.reconnect(deadline)  # whose error says what is wrong
                    raise IterationTimeoutError(self._missing())
                self._wait = min(self.patience, timedelta(seconds=max(left, _SHORTEST_WAIT)))
                if self.in_doubt:
                    if self._has_decided(self.since):
                        return self._finish()
                    try:
                        self._recover(deadline)
                    except ConnectionBroken:
                        continue
                operation = self._operation
                assert operation is not None and self._generator is not None
                self.in_doubt = True
                self._began = 0 if recorder is None else now()
                try:
                    reply = perform[operation.__class__](operation)
                except ConnectionBroken:
                    if self._has_decided(self.since):  # it was the wake, which only spares the others a wait
                        return self._finish()
                    continue
                if recorder is not None:
                    recorder.operation(operation, reply, self._began)
                    self._operation = None
                if operation.step == "restore_register" and reply == str(state.record._replace(attention=False)):
                    logger.warning("the store had lost its data: put iteration %d back", state.record.iteration)
                if self.watchers:
                    for watcher in self.watchers:
                        watcher(state, operation, reply)
                self._operation = self._generator.send(reply)
                self.in_doubt = False
                if state.me is not self._announced:
                    self.announce(state.me)
                    self._announced = state.me
        except StopIteration:
            self.in_doubt = False
            return self._finish()
        except (IterationTimeoutError, StoreUnreachableError):
            raise
        except CoxlessError as error:
            if recorder is not None:
                recorder.error(error)
            raise

    def _start(self, generator: Generator[Operation, object, Decision]) -> None:
        if self.recorder is not None:
            self.recorder.vote(self.state)
            self._began = now()
        self.since = self.state.record.iteration if self.state.is_member else 0
        lost, self.unfinished, self.in_doubt = self.in_doubt, True, True
        self._generator, self._operation = generator, next(generator)
        self.in_doubt = lost  # then the operation is the one that is not made

    def _recover(self, deadline: float) -> None:
        """Tell the generator that its connection broke; an interrupted one cannot be told any more, and another one goes on from there."""
        if self.connection.broken:
            self._reconnect(deadline)
        self._refuse_foreign_count()
        # Only now: until then it may still take effect, in a server that was stopped, say.
        self._record_what_was_cut()
        if self.recorder is not None and self._operation is not None:
            self.recorder.broken(self._operation, self._began)
        self._operation = None
        # Should this rank have to create the register again, then as another genesis: the join timeout counts from each.
        self.state.generation = os.urandom(4).hex()
        self._generator = recover(self.state)
        self._operation = next(self._generator)
        self.in_doubt = False

    def _refuse_foreign_count(self) -> None:
        """A TCPStore server hangs up on whoever arrives at a count that is no number: that is why the connection broke, then."""
        if not self.state.is_member:
            return
        key = self.connection.parts_of(keys.count(self.state.record.iteration))[0]
        # Others may be blocked at it: asked by compare_set they would be let through without this rank, whose vote may be "failed" (S8).
        text = self.connection.peek(key)
        if text is not None:
            parse_counter(key, text)

    def _reconnect(self, deadline: float) -> None:
        self.connection.reconnect(deadline)
        self.observer.look_away()

    def _finish(self) -> Decision:
        state = self.state
        decision = Decision(state.record, state.listed, state.me)
        if self.recorder is not None and self.recorded != state.record.iteration:
            if self._operation is not None:
                self.recorder.broken(self._operation, self._began)
            self.recorder.decision(decision)
            self.recorded = state.record.iteration
        self._generator = self._operation = None
        self.unfinished = False
        return decision

    def look(self, question: Callable[[], T]) -> T:
        """Ask the store something between two runs, or while one is stopped, on a new connection if need be; then the next run recovers
        first, since the store may have lost its data.

        Raises StoreUnreachableError after three seconds at most.
        """
        connection = self.connection
        connection.deadline = time.monotonic() + REPLY_LIMIT
        for attempt in (1, 2):
            try:
                if connection.broken:
                    self.in_doubt = True
                    self._reconnect(time.monotonic() + _LOOK_LIMIT)
                return question()
            except ConnectionBroken:
                if attempt == 2:
                    break
        raise StoreUnreachableError(f"the store does not answer: asked twice in {_LOOK_LIMIT:g} s")

    def __post_init__(self) -> None:
        # One entry for each operation; looked up by class, which is quicker than matching.
        connection = self.connection
        self._perform = {
            Barrier: lambda op: connection.barrier(op.key, op.size, self._wait),
            CompareSet: lambda op: connection.compare_set(op.key, op.expected, op.desired),
            Set: lambda op: connection.set(op.key, op.value),
            Wait: self._await,
            Add: self._add,
            Append: lambda op: connection.append(op.key, op.value),
            Read: lambda op: connection.read(op.key),
            Delete: lambda op: connection.delete(op.key),
            ReadHeartbeat: lambda op: self._looks() and self.suspects(op.member),
            JoinTimedOut: lambda op: self._join_timed_out(time.monotonic()),
        }

    def _add(self, operation: Add) -> int:
        """An incarnation: looked at first, since a server adds to "12abc" as to 12, and hangs up on a text that is no number at all."""
        text = self.connection.read_surely(operation.key)
        if text is not None:
            parse_counter(operation.key, text)
        return self.connection.add(operation.key, operation.amount)

    def _await(self, operation: Wait) -> bool:
        """The key is set when the register has moved on, so nobody is woken twice by it, but by a stranger's: then without a pause, this
        rank would ask the same over and over."""
        key = operation.key
        woken = self.connection.wait(key, self._wait)
        if woken and key == self._woken_by:
            text = self.connection.read_surely(key)
            if text is not None and text != "1":
                raise corrupt(key, text, "the sign that an iteration is over")
            time.sleep(self._wait.total_seconds())
        self._woken_by = key if woken else ""
        return woken

    def _join_timed_out(self, now: float) -> bool:
        """Counted from when this process first saw this genesis. A store that lost its data gets another: were the old one's time counted
        on, a rank could found alone at once and decide again what the others, about to push their record forward, decided before."""
        generation, since = self._founding
        if generation != self.state.record.generation:
            self._founding = (self.state.record.generation, now)
            return False
        return now - since >= self.join_timeout

    def _looks(self) -> bool:
        """Whether this rank looks at the heartbeats of those who are missing: in a large crew only some do, and the others take them for alive
        and wait to be woken; should all of those die meanwhile, everybody looks after a while."""
        state = self.state
        if len(state.listed) <= ALL_LOOK:
            return True
        if self._watch[0] != state.record.iteration:
            self._watch = (state.record.iteration, time.monotonic())
        if self._lookout[0] is not state.seen:
            self._lookout = (state.seen, is_lookout(state.me, state.seen))
        return self._lookout[1] or time.monotonic() - self._watch[1] > 3 * self.observer.timeout

    def suspects(self, member: Member) -> bool:
        """Look at the member's heartbeat. Raises ConnectionBroken."""
        key = keys.heartbeat(member)
        value = self.connection.read(key)
        if value is not None:
            parse_heartbeat(key, value)
        if value == LEFT and member not in self._left:
            self._left.add(member)
            self._end_if_deserted()
        return self.observer.observe(member, value, time.monotonic())

    def _end_if_deserted(self) -> None:
        """A rank that comes back after the others have finished would otherwise wait for min_ranks until its deadline."""
        state = self.state
        if state.is_member or state.record.iteration == 0 or len(state.seen) >= state.min_ranks:
            return
        if all(member in self._left or member.rank == state.rank for member, _ in state.listed):
            raise CrewEndedError(
                f"rank {state.rank}: every member of iteration {state.record.iteration} has left, and min_ranks is {state.min_ranks}: the job is over"
            )

    def _missing(self) -> str:
        """The message of a deadline that passed: what was missing, by name."""
        state = self.state
        k = state.record.iteration
        present = {member.rank for member in state.seen} | {state.rank}
        if k <= 0:
            absent = [f"rank {rank} (never joined)" for rank in range(state.world_size) if rank not in present]
            what = "founding"
        else:
            # not looked yet: any of the others
            missing = state.missing or ([] if state.seen else [m for m, _ in state.members or () if m != state.me])
            absent = [f"rank {m.rank} (silent for {self.observer.silence(m):.0f} s as seen from here)" for m in missing]
            what = f"iteration {k + 1}"
        if not absent and len(present) < state.min_ranks:
            absent = [f"more ranks: {len(present)} present, min_ranks is {state.min_ranks}"]
        hint = ""
        if k <= 0 and len(present) >= state.min_ranks:
            hint = f"; after a join_timeout of {self.join_timeout:g} s it goes on with {len(present)}"
        return f"{what}: gave up waiting for {', '.join(absent) or 'the others to decide'}{hint}"

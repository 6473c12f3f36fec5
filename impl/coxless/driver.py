"""Runs protocol generators on a real store: performs their operations, answers their questions about time, keeps the deadline."""

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from . import keys
from .connection import Connection
from .errors import CoxlessError, CrewEndedError, IterationTimeoutError, StoreUnreachableError
from .protocol import Decision, Operation, RankState, advance
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
from .records import LEFT, Flag, Member, Record, parse_heartbeat
from .suspicion import HeartbeatObserver

BARRIER = keys.count(0).removesuffix("0:count")

Watcher = Callable[[RankState, Operation, object], None]
"""Called after each operation, with its reply."""


@dataclass(slots=True)
class Driver:
    """Owns the training thread's connection. One generator runs at a time; one that hit the deadline can be continued."""

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
    _founding: tuple[str, float] = ("", 0.0)
    _left: set[Member] = field(default_factory=set)
    _generator: Generator[Operation, object, Decision] | None = None
    _operation: Operation | None = None
    _announced: Member = NOBODY
    _perform: dict[type, Callable[[Any], object]] = field(default_factory=dict)

    @property
    def unfinished(self) -> bool:
        """Whether the last run stopped before its decision."""
        return self._generator is not None

    def advance(self, flag: Flag, *, deadline: float) -> Decision:
        """From the iteration that this rank takes part in to the next one. Raises what `run` raises."""
        if flag == "o" and self.recorder is None and not self.watchers and not self.state.record.attention:
            return self._fast(deadline)
        return self.run(advance(self.state, flag), deadline=deadline)

    def _fast(self, deadline: float) -> Decision:
        """What `advance` of the protocol does when nothing is amiss, without its generator: the barrier, and one compare_set, which
        somebody of this epoch wins. Any other reply goes to the generator, as if it had asked. (On a core that is shared, running
        the generator costs more than both operations; tests/impl/test_fast_path.py holds the two against each other.)"""
        state, connection = self.state, self.connection
        current, epoch = state.record, state.epoch_text()
        generation, k, name, *_ = current
        head = f"{epoch.before}{k + 1}{epoch.after}"
        replies: tuple[Any, ...]
        broken: ConnectionBroken | None = None
        try:
            replies = connection.barrier_then_compare_set(
                f"{BARRIER}{k}:count",
                len(epoch.members),
                self.patience,
                keys.REGISTER,
                state.record_text(),
                head + epoch.me,
                keys.full(k),
            )
            if len(replies) == 2:
                text = replies[1]
                winner = epoch.members.get(text[len(head) :]) if text.startswith(head) else None
                if winner is not None:
                    record = Record(generation, k + 1, name, True, False, winner)
                    state.decide_in_epoch(record, text)
                    if winner == state.me and not connection.wakes:
                        with suppress(ConnectionBroken):
                            connection.set(keys.full(k), "1")
                    return Decision(record, state.listed, state.me)
        except ConnectionBroken as error:
            replies, broken = connection.replies, error
        generator = self._generator = advance(state, "o")
        operation = next(generator)
        try:
            for reply in replies:
                operation = generator.send(reply)
        except StopIteration as stop:  # a decision after all: of this epoch, with attention up again already
            self._generator = None
            decision: Decision = stop.value
            return decision
        self._operation = operation  # before reconnecting, which may fail: the call can be repeated then
        if broken is not None:
            self._operation = self._reconnect(generator, operation, 0, deadline, broken)
        return self.run(None, deadline=deadline)

    def run(self, generator: Generator[Operation, object, Decision] | None, *, deadline: float) -> Decision:
        """Run to the next decision; with None, continue where the last run stopped. `deadline` is on time.monotonic().

        Raises IterationTimeoutError and StoreUnreachableError at the deadline, and whatever the protocol raises.
        """
        state, recorder, perform = self.state, self.recorder, self._perform
        if generator is not None:
            self._generator, self._operation = generator, next(generator)
            if recorder is not None:
                recorder.vote(state)
        assert self._generator is not None
        assert self._operation is not None
        generator, operation = self._generator, self._operation
        try:
            while True:
                if time.monotonic() > deadline:
                    raise IterationTimeoutError(self._missing())
                began = 0 if recorder is None else now()
                try:
                    reply = perform[operation.__class__](operation)
                except ConnectionBroken as broken:
                    operation = self._reconnect(generator, operation, began, deadline, broken)
                    continue
                if recorder is not None:
                    recorder.operation(operation, reply, began)
                if self.watchers:
                    for watcher in self.watchers:
                        watcher(state, operation, reply)
                operation = generator.send(reply)
                if state.me is not self._announced:
                    self._announced = state.me
                    self.announce(state.me)
        except StopIteration as stop:
            self._generator = self._operation = None
            decision: Decision = stop.value
            if recorder is not None:
                recorder.decision(decision)
            return decision
        except (IterationTimeoutError, StoreUnreachableError, KeyboardInterrupt):
            self._operation = operation  # the generator still stands before it: it can be continued
            raise
        except BaseException as error:
            self._generator = self._operation = None
            if recorder is not None and isinstance(error, CoxlessError):
                recorder.error(error)
            raise

    def _reconnect(
        self,
        generator: Generator[Operation, object, Decision],
        operation: Operation,
        began: int,
        deadline: float,
        broken: ConnectionBroken,
    ) -> Operation:
        if self.recorder is not None:
            self.recorder.broken(operation, began)
        self.connection.reconnect(deadline)
        # Should this rank have to create the register again, then as another genesis: the join timeout counts from each.
        self.state.generation = os.urandom(4).hex()
        return generator.throw(broken)

    def __post_init__(self) -> None:
        # One entry for each operation; looked up by class, which is quicker than matching on the fast path.
        connection, patience = self.connection, self.patience
        self._perform = {
            Barrier: lambda op: connection.barrier(op.key, op.size, patience),
            CompareSet: lambda op: connection.compare_set(op.key, op.expected, op.desired),
            Set: lambda op: connection.set(op.key, op.value),
            Wait: lambda op: connection.wait(op.key, patience),
            Add: lambda op: connection.add(op.key, op.amount),
            Append: lambda op: connection.append(op.key, op.value),
            Read: lambda op: connection.read(op.key),
            Delete: lambda op: connection.delete(op.key),
            ReadHeartbeat: lambda op: self.suspects(op.member),
            JoinTimedOut: lambda op: self._join_timed_out(time.monotonic()),
        }

    def _join_timed_out(self, now: float) -> bool:
        """Counted from when this process first saw this genesis. A store that lost its data gets another: were the old one's time counted
        on, a rank could found alone at once and decide again what the others, about to push their record forward, decided before."""
        generation, since = self._founding
        if generation != self.state.record.generation:
            self._founding = (self.state.record.generation, now)
            return False
        return now - since >= self.join_timeout

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
        return f"{what}: gave up waiting for {', '.join(absent) or 'the others to decide'}"


def fault_from(text: str) -> Watcher:
    """A watcher that kills this process with SIGKILL at an exact point, for demonstrations and tests.

    `step@k`: right after the named step (docs/protocol.md) at the barrier of iteration k; `won@k`: right after winning the decision of
    iteration k, before anybody is told. Raises ValueError for anything else.
    """
    step, at, number = text.partition("@")
    if not (step and at and number.isdecimal()):
        raise ValueError(f"COXLESS_FAULT={text!r}: expected STEP@ITERATION, such as arrive@40 or won@80")
    iteration = int(number)

    def watch(state: RankState, operation: Operation, reply: object) -> None:
        k = state.record.iteration
        won = isinstance(operation, CompareSet) and operation.step.startswith("propose") and reply == operation.desired
        if (step == "won" and won and k + 1 == iteration) or (step == operation.step and k == iteration):
            os.kill(os.getpid(), signal.SIGKILL)

    return watch

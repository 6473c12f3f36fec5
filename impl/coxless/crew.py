"""A rank's place in the crew: what training code holds and calls."""

import logging
import math
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType
from typing import Self

from torch.distributed import Store

from . import keys
from .client import CONNECT_TIMEOUT, runs_server
from .config import Timing, World, world_from
from .connection import Connection
from .driver import Driver
from .errors import CoxlessError, IterationTimeoutError, StoreUnreachableError
from .fast_path import FastPath, fast_path
from .fault import fault_from
from .housekeeping import Housekeeper
from .iteration import Iteration, iteration_from
from .lookout import Lookout
from .outage import Outage
from .protocol import Decision, RankState, advance, enter
from .recording import recorder_from_env
from .records import Flag, Member, parse_published, parse_record, published_word
from .store import connect, refuse_unfit, store_from_env
from .suspicion import HeartbeatObserver

logger = logging.getLogger(__name__)

LEAVE_PATIENCE = 2.0
"""How long (s) leaving may take where the store does not answer."""
INTERRUPTED_PATIENCE = 0.25
"""The same after Ctrl-C, and whatever else ends the process."""
LAST_OUT_PATIENCE = 10.0
"""How long (s) a rank that runs the store in its own process waits for the others to leave, before it takes the store away."""


class Crew:
    """One rank's membership. Made by `join`; used by one thread; left by `leave` or at the end of the `with` block.

    Not to be used across fork: make it in the process that uses it (TCPStore clients do not survive fork).
    """

    def __init__(self, store: Store, world: World, timing: Timing, *, limit: timedelta = CONNECT_TIMEOUT) -> None:
        """`limit`: how long connecting to the store may take."""
        began = time.monotonic()
        self.world = world
        self.timing = timing
        self.store = store
        """The store that was given, for process groups and the like: use a clone of it, under a PrefixStore."""
        self._iteration: Iteration | None = None
        self._fast: FastPath | None = None
        self._vote: tuple[bool, bool | None] = (True, None)
        self._left = False
        self._timeout = timing.timeout.total_seconds()
        self._over: CoxlessError | None = None
        patience = timing.patience.total_seconds()
        self._observer = HeartbeatObserver(
            timeout=timing.heartbeat_timeout.total_seconds(),
            # At a barrier it looks once a patience; a longer gap means that it could not look.
            longest_gap=2 * patience + 1.0,
        )
        self._state = RankState(
            rank=world.rank,
            world_size=world.world_size,
            min_ranks=world.min_ranks,
            nonce=os.urandom(4).hex(),
            generation=os.urandom(4).hex(),
        )
        self._recorder = recorder_from_env(f"rank{world.rank}")
        if self._recorder is not None:
            self._recorder.start(self._state)
        outage = Outage()
        self._driver = Driver(
            connection=Connection(store, limit=limit, outage=outage, world_size=world.world_size),
            state=self._state,
            observer=self._observer,
            patience=timing.patience,
            join_timeout=timing.join_timeout.total_seconds(),
            announce=self._announce,
            watchers=[],
            recorder=self._recorder,
        )
        try:
            self._driver.look(self._driver.connection.agree_on_barrier)
        except CoxlessError:
            self._driver.connection.close()
            raise
        fault = os.environ.get("COXLESS_FAULT")
        if fault:
            what = "stop" if fault.startswith("stop@") else "kill"
            logger.warning("COXLESS_FAULT=%s: this process is going to %s itself there", fault, what)
            self._driver.watchers.append(fault_from(fault))
        self._housekeeper = Housekeeper(
            Connection(
                store,
                limit=max(timedelta(0), limit - timedelta(seconds=time.monotonic() - began)),
                outage=outage,
                world_size=world.world_size,
            ),
            interval=timing.heartbeat_interval.total_seconds(),
            stall=math.inf if timing.stall_timeout is None else timing.stall_timeout.total_seconds(),
            recorder=self._recorder,
        )
        self._housekeeper.publish(keys.BARRIER_KIND, self._driver.connection.barrier_kind)  # again, should the store lose it
        self._lookout = Lookout(self._driver)

    # --- who and where

    @property
    def rank(self) -> int:
        """Which rank this process is, 0 .. world_size-1."""
        return self.world.rank

    @property
    def member(self) -> Member:
        """This rank and its incarnation. Known once the first iteration is."""
        return self._state.me

    @property
    def iteration(self) -> Iteration | None:
        """The latest iteration that this rank takes part in; None before the first."""
        return self._iteration

    def get_global_iteration(self) -> int:
        """The iteration that the whole crew has agreed on, as the store says now; 0 before the first. Raises StoreUnreachableError,
        within a few seconds."""
        text = self._driver.look(lambda: self._driver.connection.read(keys.REGISTER))
        return 0 if text is None else parse_record(text).iteration

    def get_active_ranks_for_coordination(self) -> list[int]:
        """The ranks of the present iteration that this rank does not suspect now. For a look, not for a decision. Raises
        StoreUnreachableError, within a few seconds."""
        if self._iteration is None:
            return [self.rank]
        participants = self._iteration.participants
        return self._driver.look(lambda: [m.rank for m in participants if m == self.member or not self._driver.suspects(m)])

    def publish(self, name: str, value: str) -> None:
        """Leave a word in the store for ranks that come later: soon, in the background, and again when the store has lost its data
        while this rank is in the crew. A hint, no decision: the last writer wins. Raises ValueError for a name of more than 200 characters,
        a value of more than 64 KiB, and for either if it is not ASCII."""
        self._housekeeper.publish(*published_word(name, value))

    def published(self, name: str) -> str | None:
        """The word that a rank has left under this name. Raises StoreUnreachableError, within a few seconds, and CorruptStoreError."""
        key, _ = published_word(name, "")
        text = self._driver.look(lambda: self._driver.connection.read(key))
        return None if text is None else parse_published(key, text)

    def send_heartbeat(self) -> None:
        """Send one now. They are sent by a thread of their own every `heartbeat_interval`: nobody needs to call this, but a loop with a
        `stall_timeout` that has to do something that takes longer, and lives."""
        self._housekeeper.alive()
        self._housekeeper.beat_now()

    # --- iterations

    def iterations(self, *, until: int | None = None) -> Iterator[Iteration]:
        """Every iteration that this rank takes part in, in order; the advance happens at the end of the loop's body.

        With `until`, ends after iteration number `until` (of the whole crew) has been decided upon; whether its update was
        committed is then in `crew.iteration.committed`. A rank that was left behind comes back with `iteration.rejoined`.
        Raises what `advance` raises. Called again, it goes on where it stopped: with the iteration that was not voted on yet, or, if
        it was, by finishing its advance.
        """
        if until is not None and until < 0:
            raise ValueError(f"until must be at least 0, not {until}")
        iteration = self._iteration
        if iteration is None or self._driver.owes(iteration.number):
            iteration = self.advance()
        while until is None or iteration.number <= until:
            self._vote = (True, None)
            yield iteration
            ok, holds = self._vote
            iteration = self.advance(ok, holds=holds)

    def vote(self, ok: bool, *, holds: bool | None = None) -> None:
        """Say whether this iteration's step worked here; without it, it did. See `advance` for `holds`."""
        self._vote = _checked_vote(ok, holds)
        self._housekeeper.alive()

    def advance(self, ok: bool = True, *, holds: bool | None = None) -> Iteration:
        """Arrive at the barrier with this rank's vote on the present iteration, and return the next one. The first call founds or
        joins the crew; its vote is not used.

        ok: this rank's step worked. Only if every member that goes on says so is the update committed.
        holds: whether this rank holds the model state now; by default, if its step worked or it held the state before.

        Raises IterationTimeoutError (naming who was missing) or StoreUnreachableError after `timeout`: the call may be
        repeated and goes on waiting, with the vote that was given first. Raises SupersededError when a newer process of this
        rank has taken over, CrewEndedError when all others have left and this rank alone is fewer than min_ranks, and
        CorruptStoreError for a value in the store that no member wrote; these are final.
        """
        began = time.monotonic()
        if ok is not True or holds is not None:
            ok, holds = _checked_vote(ok, holds)
        fast, iteration = self._fast, None
        try:
            if fast is not None and ok:
                iteration = fast(self._iteration, began)
            if iteration is None:
                iteration = self._advance(ok, holds, began)
        except (IterationTimeoutError, StoreUnreachableError):
            raise
        except CoxlessError as error:
            self._over, self._fast = error, None
            raise
        # Last, and with no call after it: an exception from a signal handler either finds it done, and the caller has the iteration,
        # or not, and the next call returns it.
        self._iteration = iteration
        return iteration

    def _advance(self, ok: bool, holds: bool | None, began: float) -> Iteration:
        """As `advance`, of which the fast path has made nothing yet, or only begun it."""
        if self._over is not None:
            raise self._over
        if self._left:
            raise CoxlessError(f"rank {self.rank} has left the crew: join again to take part")
        previous, housekeeper = self._iteration, self._housekeeper
        housekeeper.in_call()
        try:
            iteration = iteration_from(self._decide(previous, ok, holds, began + self._timeout), previous)
        finally:
            housekeeper.alive()
        housekeeper.iteration = iteration.number
        if previous is None or iteration.epoch != previous.epoch:
            self._begin_epoch(iteration, previous)
        watched = self.timing.stall_timeout is not None
        self._fast = fast_path(self._driver, housekeeper, iteration, timeout=self._timeout, watched=watched)
        return iteration

    def _decide(self, previous: Iteration | None, ok: bool, holds: bool | None, deadline: float) -> Decision:
        driver, state = self._driver, self._state
        try:
            decision = driver.decided(0 if previous is None else previous.number)
            if decision is not None:
                return decision
            if driver.unfinished:
                return driver.run(None, deadline=deadline)
            if previous is None:
                return driver.run(enter(state), deadline=deadline)
            flag: Flag = "o" if ok else "f" if (previous.holds if holds is None else holds) else "j"
            return driver.run(advance(state, flag), deadline=deadline)
        finally:
            if state.deletions:
                self._housekeeper.delete(state.deletions)
                state.deletions = []

    def _begin_epoch(self, iteration: Iteration, previous: Iteration | None) -> None:
        participants = iteration.participants
        self._observer.forget_all_but(set(participants))
        # One of those who were there before cleans up, so that it knows who has gone: the first of them.
        first = next((member for member in participants if member not in iteration.joined), None)
        if first == self.member and not iteration.rejoined and (iteration.left or iteration.joined):
            self._housekeeper.delete(map(keys.heartbeat, iteration.left))
            self._housekeeper.sweep(iteration.number - 1, participants)
        logger.info(
            "iteration %d, epoch %s: ranks %s", iteration.number, iteration.epoch, ",".join(str(m.rank) for m in participants)
        )
        if iteration.rejoined and previous is not None:
            logger.warning(
                "rank %d was left behind at iteration %d and rejoins at %d", self.rank, previous.number, iteration.number
            )

    def trouble(self) -> str | None:
        """Why the present iteration cannot complete as it is, or None: to be asked now and then while waiting in a collective,
        since not every backend notices that a peer has gone or given up.

        One round trip, and one more for each of a few participants, who are asked about in turn. A store that does not answer is no
        trouble of the collective's: None, within a few seconds, and the next call tries a new connection.
        """
        if self._iteration is None:
            return None
        self._housekeeper.alive()
        try:
            return self._lookout.trouble(self._iteration)
        except StoreUnreachableError:
            return None

    def _announce(self, member: Member) -> None:
        """Start the heartbeats of the incarnation just taken, and tell the supervisor which member this process is."""
        path = os.environ.get("COXLESS_MEMBER_FILE")
        if path:
            try:
                with open(path, "a", encoding="ascii") as file:
                    file.write(f"{member}\n")
            except OSError as error:  # costs the others the heartbeat timeout, should this process die; no reason to die of it
                logger.warning("the supervisor cannot be told that this process is %s: %s", member, error)
        self._housekeeper.beat_as(member)

    # --- the end

    def leave(self) -> None:
        """Leave cleanly: the others go on without waiting for the heartbeat timeout. Calling it twice is harmless.

        Takes a few seconds at most, also when the store does not answer. Only a rank that runs the store in its own process waits for
        the others to leave, for at most ten seconds: they need it to the end.
        """
        self._leave(last_out=True, patience=LEAVE_PATIENCE)

    def _leave(self, *, last_out: bool, patience: float) -> None:
        if self._left:
            return
        self._fast, self._left = None, True
        if self._recorder is not None:
            self._recorder.left()
        self._housekeeper.leave(patience=patience)
        if last_out and self._iteration is not None and runs_server(self.store):
            others = [member for member in self._iteration.participants if member != self.member]
            staying = self._housekeeper.await_the_others(others, patience=LAST_OUT_PATIENCE)
            if staying:
                ranks = ", ".join(str(member.rank) for member in staying)
                logger.warning("rank %d runs the store in its own process: it is gone with it for ranks %s", self.rank, ranks)
        self._housekeeper.close()
        self._driver.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        # An error must not be held up, least of all Ctrl-C.
        self._leave(last_out=kind is None, patience=INTERRUPTED_PATIENCE if interrupted else LEAVE_PATIENCE)


def _checked_vote(ok: bool, holds: bool | None) -> tuple[bool, bool | None]:
    if ok and holds is False:
        raise ValueError("ok=True with holds=False: a rank whose step worked holds the model state; vote ok=False")
    return bool(ok), holds


def join(
    store: Store | str | None = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    min_ranks: int = 1,
    heartbeat_interval: timedelta = timedelta(seconds=5),
    heartbeat_timeout: timedelta = timedelta(seconds=30),
    patience: timedelta = timedelta(milliseconds=250),
    join_timeout: timedelta = timedelta(minutes=5),
    timeout: timedelta = timedelta(minutes=10),
    stall_timeout: timedelta | None = None,
) -> Crew:
    """Take this rank's place in the crew. Does not wait for the others: the first iteration does.

    store: any torch.distributed.Store of a kind that can carry the protocol (TCPStore with libuv, EtcdStore, HashStore between
        threads, FileStore), or an address: "10.0.0.1:29400", "etcd://10.0.0.1:2379/job-17", "file:///shared/job-17". None:
        COXLESS_STORE; else MASTER_ADDR and MASTER_PORT, where rank 0 starts an embedded server, unless torchrun already runs
        one there.
    rank, world_size: from RANK and WORLD_SIZE when None. Founding waits for world_size ranks; more may join later.
    min_ranks: an iteration is never decided with fewer participants. Must be the same on all ranks.
    heartbeat_interval, heartbeat_timeout, patience, join_timeout, timeout, stall_timeout: see `Timing`.

    Raises ValueError and TypeError for bad arguments, StoreUnreachableError when no store answers within ten seconds (or `timeout`, if
    that is shorter), UnfitStoreError for a store that cannot carry the protocol.
    """
    world = world_from(rank, world_size, min_ranks)
    timing = Timing(
        heartbeat_interval=heartbeat_interval,
        heartbeat_timeout=heartbeat_timeout,
        patience=patience,
        join_timeout=join_timeout,
        timeout=timeout,
        stall_timeout=stall_timeout,
    )
    limit = min(CONNECT_TIMEOUT, timeout)
    deadline = time.monotonic() + limit.total_seconds()
    if store is None:
        opened = store_from_env(timeout=limit)
    elif isinstance(store, str):
        opened = connect(store, timeout=limit)
    else:
        refuse_unfit(store, timeout=limit)
        opened = store
    return Crew(opened, world, timing, limit=timedelta(seconds=max(0.5, deadline - time.monotonic())))


def join_from_env(**options: object) -> Crew:
    """`join` with everything that the launcher sets taken from the environment: COXLESS_STORE or MASTER_ADDR and MASTER_PORT, RANK,
    WORLD_SIZE. The other options of `join` may be given."""
    return join(None, **options)  # type: ignore[arg-type]  # checked by join itself

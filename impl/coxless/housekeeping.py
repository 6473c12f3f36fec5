"""What a rank does beside its training thread, over a connection of its own: heartbeats, deletions, what it publishes, the clean leave.

A client that is blocked in `wait` blocks all its threads, so the heartbeat must not share the training thread's connection.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from . import keys
from .connection import Connection
from .errors import StoreUnreachableError
from .litter import litter
from .protocol.operations import ConnectionBroken
from .recording import Recorder, now
from .records import DEAD, LEFT, Beat, Member

logger = logging.getLogger(__name__)

_BATCH = 32
"""So many deletions wake the thread at once; fewer wait for its next round. Waking it for every iteration would cost the training
thread more than the deletions do."""
_WORTH_A_LOOK = 512
"""When so many rare keys are to be deleted, the store is asked which keys it holds: in a run without trouble it has none of them. Not often:
TCPStore's client stops the whole process until the reply is there (`reply_within`)."""
_WORTH_A_LAST_LOOK = 24
"""The same at the end, when nobody trains any more."""
_ROUND = 1.0
_LOOK = 0.05
"""Seconds between two looks at whether the others have left."""


class Housekeeper:
    """A daemon thread. Its failures are logged once and never reach the training thread: a beat that is not sent costs a suspicion,
    a key that is not deleted is only litter."""

    def __init__(
        self, connection: Connection, *, interval: float, stall: float = math.inf, recorder: Recorder | None = None
    ) -> None:
        """interval: between two heartbeats (s). stall: how long (s) the training thread may give no sign of life before they end."""
        self._recorder = recorder
        self._connection = connection
        self._interval = interval
        self._member: Member | None = None
        self._beats = 0
        self._deletions: deque[str] = deque()
        self._rare: deque[str] = deque()
        """Those of which most are not there."""
        self._lists_keys = True
        """Whether the store can say which keys it holds, as far as is known."""
        self._began = 0
        """When the deletion in flight began, if it is recorded."""
        self._sweep: tuple[int, Sequence[Member]] | None = None
        self._published: dict[str, str] = {}
        self._unpublished = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._beat_due = 0.0
        self._stall = stall
        self.stalled = False
        """Whether the heartbeats have ended for want of life in the training thread."""
        self.iteration = 0
        """The iteration that the heartbeat reports; written by the training thread."""
        self.alive_at = math.inf
        """When (time.monotonic()) the training thread was last seen; infinity while it waits in a call of the crew's, which has its own
        deadline. Written by the training thread."""
        self._thread = threading.Thread(target=self._run, name="coxless-heartbeat", daemon=True)

    def beat_as(self, member: Member) -> None:
        """Send heartbeats for this member from now on, the first one at once."""
        started = self._member is not None
        self._member, self._beat_due = member, 0.0
        if started:
            self._wake.set()
        else:
            self._thread.start()

    def alive(self) -> None:
        """The training thread lives: it calls this now and then."""
        self.alive_at = time.monotonic()
        if self.stalled:
            self.beat_now()

    def in_call(self) -> None:
        """The training thread is in a call of the crew's, whose deadline watches over it."""
        if self.stalled:
            self.beat_now()  # so that heartbeats that have ended begin again at once
        self.alive_at = math.inf

    def beat_now(self) -> None:
        """Send a heartbeat as soon as the thread comes to it."""
        self._beat_due = 0.0
        self._wake.set()

    def delete(self, doomed: Iterable[str]) -> None:
        """Delete these keys, some time soon."""
        for key in doomed:
            (self._rare if self._lists_keys and keys.is_rare(key) else self._deletions).append(key)
        if len(self._deletions) >= _BATCH:
            self._wake.set()

    def sweep(self, before: int, participants: Sequence[Member]) -> None:
        """Delete what `litter` names, some time soon."""
        self._sweep = (before, participants)

    def publish(self, key: str, value: str) -> None:
        """Set this key soon, and again each time that the store may have lost its data."""
        self._published = {**self._published, key: value}
        self._unpublished = True
        self._wake.set()

    def leave(self, *, patience: float) -> None:
        """Stop the heartbeats, and say `left`, so that the others need not wait for the heartbeat timeout; then finish the deletions."""
        deadline = time.monotonic() + patience
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience)
        if self._member is None or self._thread.is_alive():
            return
        self._connection.deadline = deadline
        try:
            self._renew_connection(deadline)
            self._publish()
            # On the connection that carried the beats, so that it cannot be overtaken by one; the ping proves it arrived.
            self._connection.set(keys.heartbeat(self._member), LEFT)
            self._connection.ping()
            self._delete_pending(deadline)
        except (ConnectionBroken, RuntimeError):
            logger.info("the store is gone: %s leaves without saying so", self._member)

    def await_the_others(self, others: Iterable[Member], *, patience: float) -> list[Member]:
        """After `leave`: wait until these have left or are marked dead. Returns those that have not."""
        deadline = time.monotonic() + patience
        self._connection.deadline = deadline
        waiting = list(others)
        try:
            while waiting and not self._connection.broken:
                waiting = [one for one in waiting if self._connection.read(keys.heartbeat(one)) not in (LEFT, DEAD)]
                if time.monotonic() >= deadline:
                    break
                if waiting:
                    time.sleep(_LOOK)
        except (ConnectionBroken, RuntimeError) as error:
            logger.info("nobody can be waited for: %s", str(error) or "the store is gone")
        return waiting

    def close(self) -> None:
        """Use the connection no more."""
        self._connection.close()

    def _run(self) -> None:
        complaint = ""
        while not self._stop.is_set():
            try:
                self._renew_connection(time.monotonic() + self._interval)
                self._publish()
                self._beat_if_due()
                self._delete_pending()
                complaint = ""
            except (ConnectionBroken, RuntimeError) as error:  # StoreUnreachableError, and whatever the store raises
                self._connection.broken = True
                if not isinstance(error, ConnectionBroken | StoreUnreachableError) and str(error) != complaint:
                    complaint = str(error)  # of a store that is away, the connection speaks
                    logger.warning("no heartbeat could be sent: %s", complaint.partition("\n")[0])
                self._stop.wait(0.05)
                continue
            self._wake.wait(max(0.0, min(_ROUND, self._beat_due - time.monotonic()) if not self.stalled else _ROUND))
            self._wake.clear()

    def _renew_connection(self, deadline: float) -> None:
        """Should the store have lost its data, then deletions name keys that may be in use again, and what was published is lost."""
        if not self._connection.broken:
            return
        self._connection.reconnect(deadline)
        self._forget_deletions()
        self._sweep = None
        self._beat_due = 0.0
        self._unpublished = bool(self._published)

    def _forget_deletions(self) -> None:
        doomed = []
        for pending in (self._deletions, self._rare):
            while pending:
                doomed.append(pending.popleft())
        if self._recorder is not None and doomed:
            self._recorder.forgot([key for key in doomed if _is_of_the_protocol(key)], self._began or now())

    def _publish(self) -> None:
        if self._unpublished:
            self._unpublished = False  # first: what is published meanwhile sets it again
            for key, value in self._published.items():
                self._connection.set(key, value)
            self._connection.ping()

    def _beat_if_due(self) -> None:
        now = time.monotonic()
        if now < self._beat_due or self._member is None:
            return
        if self._is_stalled(now):
            return
        self._beat_due = now + self._interval
        self._beats += 1
        self._connection.set(keys.heartbeat(self._member), str(Beat(self._beats, self.iteration, time.time())))
        self._connection.ping()  # `set` has no reply: this one tells whether the store is there

    def _is_stalled(self, now: float) -> bool:
        silent = now - self.alive_at
        if silent <= self._stall:
            if self.stalled:
                self.stalled = False
                logger.warning("the training loop of %s goes on: heartbeats again", self._member)
            return False
        if not self.stalled:
            self.stalled = True
            logger.warning(
                "the training loop of %s has not called the crew for %.1f s (stall_timeout): no more heartbeats, so that the others "
                "can go on without it",
                self._member,
                silent,
            )
        return True

    def _delete_pending(self, deadline: float | None = None) -> None:
        """`deadline`: at the end; then the rare keys go too, however few."""
        if self._sweep is not None:
            (before, participants), self._sweep = self._sweep, None
            self._deletions.extend(litter(self._connection.list_keys(), before, participants))
        if len(self._rare) >= (_WORTH_A_LOOK if deadline is None else _WORTH_A_LAST_LOOK):
            self._pass_over_the_absent()
        elif deadline is not None:
            self._delete_rare()
        while self._deletions and (deadline is None or time.monotonic() < deadline):
            key = self._deletions[0]
            self._began = now() if self._recorder is not None else 0
            self._connection.delete(key)
            self._deletions.popleft()  # only now: should the connection break, it may have been deleted or not
            if self._recorder is not None and _is_of_the_protocol(key):
                self._recorder.deletion(key, self._began)
            self._began = 0

    def _pass_over_the_absent(self) -> None:
        """Take the rare keys that the store does not hold for deleted, as they would be by a deletion at the moment of the look."""
        pending = len(self._rare)  # before the look: what the training thread adds meanwhile may have come after it
        began = now() if self._recorder is not None else 0
        held = set(self._connection.list_keys())
        if keys.REGISTER not in held:  # this store cannot list its keys, or names them otherwise
            self._lists_keys = False
            self._delete_rare()
            return
        for _ in range(pending):
            key = self._rare.popleft()
            if key in held:
                self._deletions.append(key)
            elif self._recorder is not None:
                self._recorder.deletion(key, began)

    def _delete_rare(self) -> None:
        while self._rare:
            self._deletions.append(self._rare.popleft())


def _is_of_the_protocol(key: str) -> bool:
    """Heartbeats are deleted beside its steps."""
    return not key.startswith(keys.heartbeat(""))

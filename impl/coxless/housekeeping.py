"""What a rank does beside its training thread, over a connection of its own: heartbeats, deletions, the clean leave.

A client that is blocked in `wait` blocks all its threads, so the heartbeat must not share the training thread's connection.
"""

import logging
import threading
import time
from collections import deque

from torch.distributed import Store

from . import keys
from .connection import Connection
from .protocol.operations import ConnectionBroken
from .recording import Recorder, now
from .records import LEFT, Beat, Member

logger = logging.getLogger(__name__)

_BATCH = 96
"""So many deletions wake the thread at once; fewer wait for its next round. Waking it for every iteration would cost the training
thread more than the deletions do."""
_ROUND = 1.0


class Housekeeper:
    """A daemon thread. Its failures are logged once and never reach the training thread: a beat that is not sent costs a suspicion,
    a key that is not deleted is only litter."""

    def __init__(self, store: Store, *, interval: float, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self._connection = Connection(store)
        self._interval = interval
        self._member: Member | None = None
        self._beats = 0
        self._deletions: deque[str] = deque()
        self._sweep_before = 0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._beat_due = 0.0
        self.iteration = 0
        """The iteration that the heartbeat reports; written by the training thread."""
        self._thread = threading.Thread(target=self._run, name="coxless-heartbeat", daemon=True)

    def beat_as(self, member: Member) -> None:
        """Send heartbeats for this member from now on, the first one at once."""
        started = self._member is not None
        self._member, self._beat_due = member, 0.0
        if started:
            self._wake.set()
        else:
            self._thread.start()

    def beat_now(self) -> None:
        """Send a heartbeat as soon as the thread comes to it."""
        self._beat_due = 0.0
        self._wake.set()

    def delete(self, doomed: list[str]) -> None:
        self._deletions.extend(doomed)
        if len(self._deletions) >= _BATCH:
            self._wake.set()

    def sweep(self, iteration: int) -> None:
        """Delete the keys of every barrier before that of `iteration`: a rank that died took its own deletions with it."""
        self._sweep_before = iteration

    def leave(self, *, patience: float) -> None:
        """Stop the heartbeats, finish the deletions, and say `left`, so that the others need not wait for the heartbeat timeout."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience)
        if self._member is not None and not self._thread.is_alive():
            try:
                self._delete_pending()
                # On the connection that carried the beats, so that it cannot be overtaken by one; the ping proves it arrived.
                self._connection.set(keys.heartbeat(self._member), LEFT)
                self._connection.ping()
            except ConnectionBroken:
                logger.info("the store is gone: %s leaves without saying so", self._member)
        self._connection.close()

    def _run(self) -> None:
        complained = False
        while not self._stop.is_set():
            try:
                if self._connection.broken:
                    # What they name may be in use again, should the store have lost its data.
                    self._deletions.clear()
                    self._sweep_before = 0
                    self._connection.reconnect(time.monotonic() + self._interval)
                    self._beat_due = 0.0
                self._beat_if_due()
                self._delete_pending()
                complained = False
            except (
                ConnectionBroken,
                RuntimeError,
            ) as error:  # RuntimeError: StoreUnreachableError, and whatever the store raises
                self._connection.broken = True
                if not complained:
                    logger.warning("no heartbeats while the store does not answer%s", f": {error}" if str(error) else "")
                complained = True
                self._stop.wait(0.05)
                continue
            self._wake.wait(max(0.0, min(_ROUND, self._beat_due - time.monotonic())))
            self._wake.clear()

    def _beat_if_due(self) -> None:
        now = time.monotonic()
        if now < self._beat_due or self._member is None:
            return
        self._beat_due = now + self._interval
        self._beats += 1
        self._connection.set(keys.heartbeat(self._member), str(Beat(self._beats, self.iteration, time.time())))
        self._connection.ping()  # `set` has no reply: this one tells whether the store is there

    def _delete_pending(self) -> None:
        if self._sweep_before:
            before, self._sweep_before = self._sweep_before, 0
            self._deletions.extend(key for key, k in self._connection.barriers().items() if k < before)
        while self._deletions:
            key = self._deletions.popleft()
            began = now() if self._recorder is not None else 0
            self._connection.delete(key)
            if self._recorder is not None:
                self._recorder.deletion(key, began)

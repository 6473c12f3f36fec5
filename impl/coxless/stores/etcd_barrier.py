"""The openings of barriers, heard of through one watch for all barriers of a session, which is there before they are.

A watch that is opened for one barrier comes too late too often: when something else is written to etcd just while it is set up, etcd
serves it from a queue that it comes to every 100 ms only, and somebody always writes while a crew meets. Also it costs both sides more
than the meeting.

The watch may fail, or fall silent with its member. So it is only ever believed when it says that a barrier is open.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .etcd_cluster import Deadline, Refused, Unanswered
from .etcd_waiting import Watch

if TYPE_CHECKING:
    from .etcd_session import Session


class Expectation:
    """Of the opening of one barrier."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._opened_at = 0
        self.covered_since = 0
        """From the revision after this one on no opening is missed; 0: it may be. Set by `Openings`."""

    def opened(self, revision: int) -> None:
        with self._changed:
            self._opened_at = max(self._opened_at, revision)
            self._changed.notify()

    def broken(self) -> None:
        with self._changed:
            self.covered_since = 0
            self._changed.notify()

    def wait(self, revision: int, seconds: float) -> bool:
        """Whether it is opened after that revision before the time is over. False also at once when it might be missed."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._opened_at <= revision:
                left = until - time.monotonic()
                if left <= 0 or not 0 < self.covered_since <= revision:
                    return False
                self._changed.wait(left)
            return True


class Openings:
    """One for each session."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._lock = threading.Lock()
        self._expected: dict[bytes, list[Expectation]] = {}
        self._watch: Watch | None = None
        self._since = 0

    @contextmanager
    def expected(self, key: bytes, deadline: Deadline) -> Iterator[Expectation]:
        """Listen for the opening of that barrier during the block. Does not wait, except for a login, and no longer than the deadline."""
        expectation = Expectation()
        with self._lock:
            if self._watch is None or self._watch.member != self._session.cluster.current:
                self._begin(deadline)
            expectation.covered_since = self._since
            self._expected.setdefault(key, []).append(expectation)
        try:
            yield expectation
        finally:
            with self._lock:
                rest = self._expected[key]
                rest.remove(expectation)
                if not rest:
                    del self._expected[key]

    def distrust(self) -> None:
        """The watch did not tell of an opening: have a new one."""
        with self._lock:
            self._end()

    def close(self) -> None:
        self.distrust()

    # --- with the lock held

    def _begin(self, deadline: Deadline) -> None:
        self._end()
        root = self._session.layout.openings
        try:
            self._watch = Watch(self._session, root, root[:-1] + b"0", None, deadline)
        except (Unanswered, Refused):  # whoever waits asks by himself then, and is told
            return
        threading.Thread(target=self._listen, args=(self._watch,), name="coxless-etcd-barriers", daemon=True).start()

    def _end(self) -> None:
        watch, self._watch, self._since = self._watch, None, 0
        if watch is not None:
            watch.close()
            for expectations in self._expected.values():
                for expectation in expectations:
                    expectation.broken()

    # --- in the thread of one watch

    def _listen(self, watch: Watch) -> None:
        try:
            since = watch.revision()
            with self._lock:
                if self._watch is watch:
                    self._since = since
            while True:
                for key, revision in watch.puts():
                    with self._lock:
                        expectations = list(self._expected.get(key, ())) if self._watch is watch else []
                    for expectation in expectations:
                        expectation.opened(revision)
        except (Unanswered, Refused, TimeoutError):
            with self._lock:
                if self._watch is watch:
                    self._end()

"""A thread for what the training thread must not wait for: pending process groups and clean-up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from torch.distributed import Work

_log = logging.getLogger(__name__)

_Parked = tuple[Work, tuple[object, ...]]

POLL_INTERVAL = 0.1  # seconds between two looks at the pending work


class Background:
    """One daemon thread that holds pending work until it has ended, and makes calls in the order given.

    Dropping a process group while its work is pending blocks until the group's timeout, with the interpreter's lock held:
    so a group that was given up is parked here, together with the buffers that the work may still write into, and its
    last reference goes away only after the work has completed.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._parked: list[_Parked] = []
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """How many pieces of work have not ended yet."""
        return len(self._parked)

    def hold(self, work: Work, *things: object) -> None:
        """Keeps `work` and `things` alive until the work has completed. The caller drops its own references."""
        with self._lock:
            self._parked.append((work, things))
        self._start()

    def call(self, job: Callable[[], object]) -> None:
        """Calls `job` soon. What it raises is logged and forgotten: only clean-up belongs here."""
        self._jobs.put(job)
        self._start()

    def flush(self, timeout: float) -> bool:
        """Waits until the calls made so far are done, at most `timeout` seconds; says whether they are."""
        done = threading.Event()
        self.call(done.set)
        return done.wait(timeout)

    def settle(self, timeout: float) -> bool:
        """Waits until nothing is left to do, at most `timeout` seconds; says whether that was reached."""
        deadline = time.monotonic() + timeout
        flushed = self.flush(timeout)
        while self._parked and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL / 4)
        return flushed and not self._parked

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                # A daemon: at the end of the process the operating system frees what is still pending.
                self._thread = threading.Thread(target=self._run, name="coxless-background", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._drop_completed()
            try:
                job = self._jobs.get(timeout=POLL_INTERVAL) if self._parked else self._jobs.get(timeout=10 * POLL_INTERVAL)
            except Empty:
                continue
            try:
                job()
            except Exception as error:  # noqa: BLE001  clean-up is a hint; a failing one must not end the thread
                _log.debug("clean-up failed: %s", str(error).partition("\n")[0])
            del job  # or the thread would keep what the call refers to until the next one

    def _drop_completed(self) -> None:
        with self._lock:
            split: tuple[list[_Parked], list[_Parked]] = [], []
            for entry in self._parked:
                split[entry[0].is_completed()].append(entry)
            self._parked = split[False]
        # The completed ones go out of scope here, on this thread: that is where their groups are destroyed.

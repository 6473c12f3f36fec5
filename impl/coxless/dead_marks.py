"""Telling the crew that a process is dead, so that nobody has to wait for its heartbeat to go stale."""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Protocol

from . import keys
from .address import redacted
from .connection import Connection
from .errors import CorruptStoreError, CoxlessError
from .protocol.operations import ConnectionBroken
from .records import DEAD, LEFT
from .store import connect
from .stores import let_go

logger = logging.getLogger(__name__)

# A last beat of the dead process may have been in a socket buffer when the first mark was written.
SECOND_MARK_AFTER = 0.5
RETRY_AFTER = 0.2
# A mark that could not be written for so long is of no use: the heartbeat timeout has told the crew.
GIVE_UP_AFTER = 60.0


class _Marks(Protocol):
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes | str: ...


def mark_dead(store: _Marks, tokens: Iterable[str], *, again: bool = False) -> tuple[str, ...]:
    """Write `dead` as the heartbeat of each member `rank.n-nonce`, but of those that have left. Returns those that are marked dead.

    again: only where there is a heartbeat; one that was deleted meanwhile is read by nobody any more, and would be litter.
    `store` is a store or a Connection; what it raises passes through.
    """
    return tuple(token for token in tokens if _mark(store, keys.heartbeat(token), again=again))


def _mark(store: _Marks, key: str, *, again: bool) -> bool:
    # Never over `left`, which may still be on its way from the process: so each step names what it replaces.
    found = _text(store.compare_set(key, *((keys.PROBE, keys.PROBE) if again else ("", DEAD))))
    while found not in (DEAD, LEFT, keys.PROBE):
        expected, found = found, _text(store.compare_set(key, found, DEAD))
        if found == expected:  # it is missing: deleted just now
            return False
    return found == DEAD


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("ascii", errors="replace")


class DeadMarker:
    """Writes the marks from a thread of its own, over a connection of its own, which it renews whenever it breaks.

    A store that hangs or is gone for a while thus delays nobody: the marks are written when it is back.
    """

    def __init__(self, address: str, on_marked: Callable[[int, tuple[str, ...]], None]) -> None:
        """`on_marked(rank, tokens)` is called, from this thread, after the first mark of a process, with those members that had not left."""
        self._address = address
        self._on_marked = on_marked
        # (when, order, until, rank, tokens, the first time)
        self._due: list[tuple[float, int, float, int, tuple[str, ...], bool]] = []
        self._order = 0
        self._changed = threading.Condition()
        self._closing = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="coxless-dead-marks", daemon=True)
        self._thread.start()

    def mark(self, rank: int, tokens: Iterable[str]) -> None:
        """Have the members of a process that has ended marked: now, and once more half a second later. Returns at once."""
        named = tuple(tokens)
        if named:
            now = time.monotonic()
            self._push(now, now + GIVE_UP_AFTER, rank, named, True)
            self._push(now + SECOND_MARK_AFTER, now + GIVE_UP_AFTER, rank, named, False)

    def close(self, patience: float = 2.0, *, write: bool = True) -> None:
        """Write what is still to be written without waiting for its time, or drop it, for at most `patience` seconds."""
        with self._changed:
            self._closing = True
            if not write:
                self._due.clear()
            self._changed.notify()
        self._thread.join(patience)

    def _push(self, when: float, until: float, rank: int, tokens: tuple[str, ...], first: bool) -> None:
        with self._changed:
            self._order += 1
            heapq.heappush(self._due, (when, self._order, until, rank, tokens, first))
            self._changed.notify()

    def _run(self) -> None:
        self._connected()  # ahead of the first death: importing and connecting take longer than a mark should
        while True:
            with self._changed:
                while not self._closing and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(None if not self._due else max(0.0, self._due[0][0] - time.monotonic()))
                if not self._due:
                    break
                _, _, until, rank, tokens, first = heapq.heappop(self._due)
            marked = self._write(tokens, first)
            if marked is not None:
                if marked and first:
                    self._on_marked(rank, marked)
            elif self._closing:
                break
            elif time.monotonic() < until:
                self._push(time.monotonic() + RETRY_AFTER, until, rank, tokens, first)
            else:
                logger.warning("rank %d could not be marked dead: the store at %s did not answer", rank, redacted(self._address))
        if self._connection is not None:
            self._connection.close()

    def _write(self, tokens: tuple[str, ...], first: bool) -> tuple[str, ...] | None:
        """Which are marked; None when that could not be done."""
        for _ in range(2):  # a broken connection shows only when it is used
            if not self._connected():
                return None
            assert self._connection is not None
            try:
                return mark_dead(self._connection, tokens, again=not first)
            except CorruptStoreError as error:  # and will stay so
                logger.warning("%s cannot be marked dead: %s", ", ".join(tokens), error)
                return ()
            except (ConnectionBroken, CoxlessError):
                continue
        return None

    def _connected(self) -> bool:
        try:
            if self._connection is None:
                store = connect(self._address, timeout=timedelta(seconds=5))
                self._connection = Connection(store)  # which has a clone
                let_go(store)
            elif self._connection.broken:
                self._connection.reconnect(time.monotonic() + 1.0)
        except (CoxlessError, RuntimeError, ValueError) as error:
            logger.debug("no connection for marking the dead: %s", error)
            return False
        return True

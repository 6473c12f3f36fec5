"""One connection to the store, used by one thread at a time, that never outwaits its limit.

TCPStore's own timeouts assume a live server: with the server stopped, `wait(1s)`, `add` and even `clone()` block until it resumes. So
every operation here runs under a watchdog, which shuts the client's socket down from another thread when the reply is overdue;
the blocked call then raises, and the client is discarded. No client ever reconnects by itself: `reconnect` clones a new one.
(An EtcdStore keeps its time limits itself and has no socket to shut down; the rest is the same.)
"""

import contextlib
import logging
import math
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from torch import __version__ as torch_version
from torch.distributed import DistNetworkError, DistStoreError, Store, TCPStore

from . import keys
from .attempt import Attempt
from .client import (
    CLIENT_TIMEOUT,
    CONNECT_TIMEOUT,
    address,
    base_of,
    client_socket,
    fresh_client,
    has_native_barrier,
    reply_within,
)
from .ending import at_end
from .errors import CorruptStoreError, StoreUnreachableError, UnfitStoreError
from .outage import Outage
from .protocol.operations import ConnectionBroken
from .records import corrupt
from .signals import SignalEar
from .stores import let_go

logger = logging.getLogger(__name__)

REPLY_LIMIT = 2.5
"""How long a reply may take, a wait's patience included, before the connection is given up (s). Losing one costs a slow close, never safety."""
_PER_RANK = 0.01
"""So much longer for each rank beyond 64 (s): all of them at once, as when they found, are answered one after another. If they gave up a
store that is only busy, all would connect to it again at once, and it would be busier yet, and so on: a thousand often did not found at all.
And those that do give it up, or whose attempt to connect took too long, do not connect at once, but spread over half of that time."""
ATTEMPT_LIMIT = 30.0
"""After so long without an end (s) an attempt to connect is left to itself, and another one is made: its host may be gone."""
_TICK = 0.1
_SLOW = 1.0
"""After so long without an answer (s), to a question or an attempt to connect, the log says that the store is away."""
_SIGNAL_TICKS = 4
"""So many ticks after a signal an operation that was in flight is given up, so that the handler can run: longer than the usual patience,
so that a store that answers does not lose a connection to each SIGCHLD."""
_PAST_DEADLINE = 2
"""An operation must have been in flight for so many ticks before a deadline that has passed ends it: a store that answers gets to."""
_PROBE = keys.PROBE.encode()
_random = random.SystemRandom()
"""Not the one that whoever trains may have seeded, alike on all ranks."""


class Connection:
    """A client of its own, cloned from `store`, with the few operations that the protocol needs.

    They raise ConnectionBroken when it is not known whether the operation took effect; the connection then stays broken until
    `reconnect`. They raise CorruptStoreError for a value that is not text.
    """

    def __init__(
        self, store: Store, *, limit: timedelta = CONNECT_TIMEOUT, outage: Outage | None = None, world_size: int = 1
    ) -> None:
        """Connect within `limit`, else StoreUnreachableError. `outage`: shared by connections that are to speak in the log as one.
        `world_size`: how many use the store."""
        self._spread = _PER_RANK * max(0, world_size - 64)
        self._not_before = -math.inf
        """On time.monotonic(): no attempt to connect begins before it."""
        self.reply_limit = REPLY_LIMIT + self._spread
        self.broken = True
        """No operation is possible before `reconnect`."""
        self.deadline = math.inf
        """On time.monotonic(): an operation in flight is given up soon after it, although its reply may still be on its way."""
        self.flight = 0
        """What the watchdog looks at: odd while an operation is in flight."""
        self.store = store
        """The client. Whoever calls it without a method of this class in between (`fast_path`) minds `broken` and `flight` itself."""
        self._owned = False
        self._socket: socket.socket | None = None
        self._attempt: Attempt[Store] | None = None
        self._outage = Outage() if outage is None else outage
        _watchdog.watch(self)
        self.reconnect(time.monotonic() + limit.total_seconds())

    def _adopt(self, store: Store) -> None:
        # A clone of it inherits this; `wait` is given its own.
        store.set_timeout(CLIENT_TIMEOUT + timedelta(seconds=self._spread))
        self.store = store
        self._native_barrier = has_native_barrier(store)
        self._plain_timeouts = not isinstance(base_of(store), TCPStore)
        self.arrive: Callable[[str, int, timedelta], object] = store.barrier if self._native_barrier else self._emulated_barrier
        """What `barrier` calls: one command where the store has it."""
        self.compare_set_and_wake: Callable[[str, str, str, str], bytes] | None = getattr(store, "compare_set_and_wake", None)
        """Where the store can: sets a further key together with the register, which costs etcd one commit less."""
        self._socket = client_socket(store)
        self._owned = True
        self.flight += self.flight % 2  # an exception from a signal handler may have left it odd
        self.broken = False

    def _call(self, operation: Callable[..., Any], *arguments: object) -> Any:
        if self.broken:
            raise ConnectionBroken
        self.flight += 1
        try:
            return operation(*arguments)
        except DistNetworkError as error:
            self.broken = True
            raise ConnectionBroken from error
        except (RuntimeError, ValueError):
            raise  # an answer, if no good one: the end of a wait's time (RuntimeError), a key that is no text (ValueError)
        except BaseException:
            # From a signal handler (Ctrl-C). What was sent has its reply by now, but that is torch's business: use a new client.
            self.broken = True
            raise
        finally:
            self.flight += 1

    def add(self, key: str, amount: int) -> int:
        """The new value of a count, created when it is missing."""
        value: int = self._call(self.store.add, key, amount)
        return value

    def set(self, key: str, value: str) -> None:
        """Has no reply: it "succeeds" on a dead server too, until the next operation that has one. So it is with a store whose `set` has
        one: what breaks is told by the next operation. (The protocol, and the model of it, know no other.)"""
        with contextlib.suppress(ConnectionBroken):
            self._call(self.store.set, key, value)

    def append(self, key: str, value: str) -> None:
        """Like `set`, but adds to what is there."""
        with contextlib.suppress(ConnectionBroken):
            self._call(self.store.append, key, value)

    def compare_set(self, key: str, expected: str, desired: str) -> str:
        """`desired` if the key held `expected` (or was missing, and `expected` is ""), else what it holds; `expected` if it is missing."""
        return text_of(key, self._call(self.store.compare_set, key, expected, desired))

    def read(self, key: str) -> str | None:
        """The value, or None. compare_set with a value that no key holds: one round trip, no blocking, nothing created."""
        value = self._call(self.store.compare_set, key, keys.PROBE, keys.PROBE)
        return None if value == _PROBE else text_of(key, value)

    def barrier(self, key: str, size: int, patience: timedelta) -> bool:
        """Count this caller in at `key` and wait until `size` are: whether they were before the patience ran out. The caller stays
        counted when they were not. One command where the store has it; signals are not handled meanwhile."""
        try:
            self._call(self.arrive, key, size, patience)
        except CorruptStoreError:
            raise
        except RuntimeError as error:
            return self.timed_out(error)
        return True

    def _emulated_barrier(self, key: str, size: int, patience: timedelta) -> None:
        added, opened = key + keys.ADDED, key + keys.OPENED
        try:
            count = self.store.add(added, 1)
        except ValueError:  # FileStore and HashStore; a TCPStore server hangs up
            raise corrupt(added, self.store.get(added), "a count") from None
        if count < size:
            self.store.wait([opened], patience)
        else:
            self.store.set(opened, "1")

    def wait(self, key: str, patience: timedelta) -> bool:
        """Whether the key is there before the patience runs out. Signals are not handled meanwhile."""
        try:
            self._call(self.store.wait, [key], patience)
        except RuntimeError as error:
            return self.timed_out(error)
        return True

    def timed_out(self, error: RuntimeError) -> bool:
        """False for the error of a wait whose time is over; raises any other again."""
        # FileStore's is a plain RuntimeError; elsewhere such a one is somebody else's, raised by a signal handler.
        if isinstance(error, DistStoreError) or (self._plain_timeouts and "imeout" in str(error)):
            return False
        raise error

    @property
    def barrier_kind(self) -> str:
        """COMMAND where the store has the barrier in one command, else EMULATED."""
        return keys.COMMAND if self._native_barrier else keys.EMULATED

    def agree_on_barrier(self) -> None:
        """Make sure that whoever is on this store meets as this client does. The two kinds count apart, so that nobody would be let through
        with a member missing; but neither count would ever be full, and every iteration would wait for the patience.

        Raises UnfitStoreError.
        """
        own = self.barrier_kind
        theirs = self.compare_set(keys.BARRIER_KIND, "", own)
        if theirs not in (keys.COMMAND, keys.EMULATED):
            raise corrupt(keys.BARRIER_KIND, theirs, f"{keys.COMMAND!r} or {keys.EMULATED!r}")
        if theirs != own:
            theirs_is, own_is = ("without", "by") if own == keys.COMMAND else ("by", "without")
            raise UnfitStoreError(
                f"the other ranks on the store at {address(self.store)} meet {theirs_is} TCPStore's barrier command, this one (torch "
                f"{torch_version}) {own_is} it: use one version of torch, and the same kind of store, for all ranks"
            )

    def delete(self, key: str) -> None:
        """Delete the key, if it is there."""
        for part in self.parts_of(key):
            self._call(self.store.delete_key, part)

    def parts_of(self, key: str) -> tuple[str, ...]:
        """The store's keys that hold what the protocol has under this one: of a count whose barrier is not one command, two others."""
        emulated = not self._native_barrier and key.endswith(":count")
        return (key + keys.ADDED, key + keys.OPENED) if emulated else (key,)

    def read_surely(self, key: str) -> str | None:
        """`read`, but a key that holds the very value which that asks with is not taken for a missing one."""
        value = self.read(key)
        if value is None and self._call(self.store.check, [key]):
            return self.read(key) or keys.PROBE  # it has come between the two, or else
        return value

    def peek(self, key: str) -> str | None:
        """As `read`, but of a key at which others may be blocked in a barrier: any compare_set there, `read`'s too, lets them through."""
        if not self._call(self.store.check, [key]):
            return None
        try:
            text = text_of(key, self._call(self.store.get, key))
        except CorruptStoreError:
            raise
        except RuntimeError as error:  # deleted between the two
            self.timed_out(error)
            return None
        # `get` is a wait and then a look, and of a key that was deleted between those two TCPStore says that it is empty.
        return text if text or self._call(self.store.check, [key]) else None

    def ping(self) -> None:
        """One round trip: proves that the store answers, and that what was sent before has arrived."""
        self._call(self.store.check, [keys.REGISTER])

    def list_keys(self) -> list[str]:
        """Every key that the store holds; none for a store that cannot list them. A TCPStore's client stops the whole process until the
        reply is there: so it is asked once it has answered something else, and given up soon."""
        if self._socket is not None:
            self.ping()
        try:
            with reply_within(self._socket):
                listed: list[str] = self._call(self.store.list_keys)
        except (AttributeError, NotImplementedError, UnicodeDecodeError):  # older torch; FileStore; a foreign key that is no text
            return []
        return listed

    def shut_down(self, silent: float = 0.0) -> None:
        """Called from the watchdog's thread: frees the call that is blocked on this connection. `silent`: for so long (s) by now because
        the store does not answer; a moment of it is no outage."""
        if silent > _SLOW:
            self._hold_off()
            self._outage.noticed(address(self.store), time.monotonic() - silent, f"no answer for {silent:.1f} s")
        self.broken = True
        own_socket = self._socket  # once: the thread whose connection this is may close it meanwhile, and make another
        if own_socket is not None:
            with contextlib.suppress(OSError):
                own_socket.shutdown(socket.SHUT_RDWR)

    def reconnect(self, deadline: float) -> None:
        """Replace the client by a new one; `deadline` is on time.monotonic().

        Raises StoreUnreachableError when no server answered by then. An attempt that has not ended goes on, and the next call takes it up.
        """
        self._close_socket()
        reason = "it accepts connections but does not answer"
        while True:
            if self._attempt is None and not self._has_held_off(deadline):
                raise StoreUnreachableError(
                    f"the store at {address(self.store)} did not answer in time, and is not asked again at once"
                )
            attempt = self._attempt
            if attempt is None or time.monotonic() - attempt.began > ATTEMPT_LIMIT:
                self._attempt = attempt = Attempt(partial(fresh_client, self.store))
            if attempt.ended(min(0.1, max(0.0, deadline - time.monotonic()))):
                self._attempt = None
                try:
                    fresh = attempt.result()
                    self._let_go()
                    self._adopt(fresh)
                    self._outage.over(address(fresh))
                    return
                except (RuntimeError, OSError) as error:  # DistNetworkError and the like
                    reason = str(error).partition("\n")[0]
                    # Else it was refused: there is no busy store, and whoever starts it again is to be found at once.
                    if time.monotonic() - attempt.began > _SLOW:
                        self._hold_off()
            now = time.monotonic()
            # Not at the first connection, of which the caller hears. An attempt that has ended by now was refused.
            if self._owned and (self._attempt is None or now - attempt.began > _SLOW):
                self._outage.noticed(address(self.store), attempt.began, reason)
            if now >= deadline:
                raise StoreUnreachableError(f"the store at {address(self.store)} cannot be reached: {reason}")
            if self._attempt is None:
                time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))

    def _hold_off(self) -> None:
        self._not_before = time.monotonic() + _random.uniform(0.0, self._spread / 2)

    def _has_held_off(self, deadline: float) -> bool:
        """Wait until a new attempt may begin, if that is before the deadline, else until that: whether it may."""
        time.sleep(max(0.0, min(self._not_before, deadline) - time.monotonic()))
        return self._not_before <= deadline

    def close(self) -> None:
        """Use it no more. May be repeated."""
        _watchdog.forget(self)
        self.broken = True
        self._close_socket()
        self._let_go()

    def _let_go(self) -> None:
        if self._owned:
            let_go(self.store)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Watchdog:
    """One thread for all connections of the process. It counts its own ticks instead of reading a clock, so that a process that was
    frozen (SIGSTOP) does not take its own absence for the store's."""

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._pid = 0
        self._ear = SignalEar()

    def watch(self, connection: Connection) -> None:
        self._ear.listen()
        with self._lock:
            self._connections.add(connection)
            if self._pid != os.getpid():  # threads do not survive fork
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="coxless-watchdog", daemon=True).start()

    def forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def free_all(self) -> None:
        """The process ends: whatever is blocked on a connection is freed."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.shut_down()

    def in_flight(self) -> bool:
        with self._lock:
            return any(connection.flight % 2 for connection in self._connections)

    def _run(self) -> None:
        flights: weakref.WeakKeyDictionary[Connection, tuple[int, int]] = weakref.WeakKeyDictionary()
        since_signal = _SIGNAL_TICKS
        while True:
            time.sleep(_TICK)
            since_signal += 1
            if self._ear.heard() and since_signal > _SIGNAL_TICKS:  # else one is followed up already
                since_signal = 0
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                flight = connection.flight
                before, ticks = flights.get(connection, (flight, 0))
                ticks = ticks + 1 if flight % 2 and flight == before else 0
                flights[connection] = (flight, ticks)
                overdue = ticks * _TICK > connection.reply_limit or (
                    ticks >= _PAST_DEADLINE and time.monotonic() > connection.deadline
                )
                signalled = since_signal == _SIGNAL_TICKS and ticks >= _SIGNAL_TICKS
                if (overdue or signalled) and not connection.broken:
                    connection.shut_down(
                        ticks * _TICK if overdue else 0.0
                    )  # a wait that a signal ends had its reply still to come
            del connections


_watchdog = _Watchdog()
at_end(_watchdog.free_all, _watchdog.in_flight)


def text_of(key: str, value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise corrupt(key, value, "text in ASCII") from None

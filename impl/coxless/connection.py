"""One connection to the store, used by one thread at a time, that never outwaits its limit.

TCPStore's own timeouts assume a live server: with the server stopped, `wait(1s)`, `add` and even `clone()` block until it resumes. So
every operation here runs under a watchdog, which shuts the client's socket down from another thread when the reply is overdue;
the blocked call then raises, and the client is discarded. No client ever reconnects by itself: `reconnect` clones a new one.
(An EtcdStore keeps its time limits itself and has no socket to shut down; the rest is the same.)
"""

import contextlib
import logging
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError, Store, TCPStore

from . import keys
from .errors import CorruptStoreError, StoreUnreachableError
from .protocol.operations import ConnectionBroken
from .stores import as_etcd, let_go, unwrapped

logger = logging.getLogger(__name__)

REPLY_LIMIT = 2.5
"""How long a reply may take, a wait's patience included, before the connection is given up (s). Losing one costs a slow close, never safety."""
CONNECT_TIMEOUT = timedelta(seconds=2)
"""For one attempt; `reconnect` makes as many as its deadline allows."""
OPENED = ":open"
"""Where the barrier is not one command, the last to come sets the barrier's key with this ending."""
_TICK = 0.1
_PROBE = keys.PROBE.encode()


class Connection:
    """A client of its own, cloned from `store`, with the few operations that the protocol needs.

    They raise ConnectionBroken when it is not known whether the operation took effect; the connection then stays broken until
    `reconnect`. They raise CorruptStoreError for a value that is not text.
    """

    def __init__(self, store: Store) -> None:
        self.broken = False
        self._adopt(store.clone())
        # What the watchdog looks at: odd while an operation is in flight.
        self.flight = 0
        self.replies: tuple[bool, ...] = ()
        _watchdog.watch(self)

    def _adopt(self, store: Store) -> None:
        store.set_timeout(CONNECT_TIMEOUT)  # which a clone of it inherits; `wait` is given its own
        self._store = store
        self._native_barrier = has_native_barrier(store)
        self._barrier = store.barrier if self._native_barrier else self._emulated_barrier
        self._compare_set_and_wake = getattr(store, "compare_set_and_wake", None)
        self._socket = _client_socket(store)

    def _call(self, operation: Callable[..., Any], *arguments: object) -> Any:
        if self.broken:
            raise ConnectionBroken
        self.flight += 1
        try:
            return operation(*arguments)
        except DistNetworkError as error:
            self.broken = True
            raise ConnectionBroken from error
        except RuntimeError:
            raise  # the end of a wait's time
        except BaseException:
            # Interrupted (Ctrl-C) between the operation and its reply: whether it took effect is not known either.
            self.broken = True
            raise
        finally:
            self.flight += 1

    def add(self, key: str, amount: int) -> int:
        value: int = self._call(self._store.add, key, amount)
        return value

    def set(self, key: str, value: str) -> None:
        self._call(self._store.set, key, value)

    def append(self, key: str, value: str) -> None:
        self._call(self._store.append, key, value)

    def compare_set(self, key: str, expected: str, desired: str) -> str:
        return _text(key, self._call(self._store.compare_set, key, expected, desired))

    def read(self, key: str) -> str | None:
        """The value, or None. compare_set with a value that no key holds: one round trip, no blocking, nothing created."""
        value = self._call(self._store.compare_set, key, keys.PROBE, keys.PROBE)
        return None if value == _PROBE else _text(key, value)

    def barrier(self, key: str, size: int, patience: timedelta) -> bool:
        """Count this caller in at `key` and wait until `size` are: whether they were before the patience ran out. The caller stays
        counted when they were not. One command where the store has it; signals are not handled meanwhile."""
        try:
            self._call(self._barrier, key, size, patience)
        except RuntimeError as error:
            return _timed_out(error)
        return True

    def barrier_then_compare_set(
        self, key: str, size: int, patience: timedelta, target: str, expected: str, desired: str, wake: str = ""
    ) -> tuple[bool] | tuple[bool, str]:
        """`barrier`, and if all came, `compare_set`: the replies. The fast path's two operations without a call between them.

        wake: where the store can, it is set together with the register, and `wakes` is True: one commit less in etcd.

        When it raises ConnectionBroken, `replies` holds what had come before.
        """
        self.replies = ()
        if self.broken:
            raise ConnectionBroken
        self.flight += 1
        try:
            self._barrier(key, size, patience)
            self.replies = (True,)
            self.flight += 2
            if wake and self._compare_set_and_wake is not None:
                return True, _text(target, self._compare_set_and_wake(target, expected, desired, wake))
            return True, _text(target, self._store.compare_set(target, expected, desired))
        except DistNetworkError as error:
            self.broken = True
            raise ConnectionBroken from error
        except CorruptStoreError:
            raise
        except RuntimeError as error:
            return (_timed_out(error),)
        except BaseException:
            self.broken = True
            raise
        finally:
            self.flight += 1

    @property
    def wakes(self) -> bool:
        """Whether `barrier_then_compare_set` sets what it is given as `wake`."""
        return self._compare_set_and_wake is not None

    def _emulated_barrier(self, key: str, size: int, patience: timedelta) -> None:
        opened = key + OPENED
        if self._store.add(key, 1) < size:
            self._store.wait([opened], patience)
        else:
            self._store.set(opened, "1")

    def wait(self, key: str, patience: timedelta) -> bool:
        """Whether the key is there before the patience runs out. Signals are not handled meanwhile."""
        try:
            self._call(self._store.wait, [key], patience)
        except RuntimeError as error:
            return _timed_out(error)
        return True

    def delete(self, key: str) -> None:
        self._call(self._store.delete_key, key)
        if not self._native_barrier and key.endswith(":count"):
            self._call(self._store.delete_key, key + OPENED)

    def ping(self) -> None:
        """One round trip: proves that the store answers, and that what was sent before has arrived."""
        self._call(self._store.check, [keys.REGISTER])

    def barriers(self) -> dict[str, int]:
        """Every barrier key that the store holds, with its iteration; nothing for a store that cannot list its keys."""
        try:
            listed: list[str] = self._call(self._store.list_keys)
        except (AttributeError, NotImplementedError, UnicodeDecodeError):
            return {}
        return {key: k for key in listed if (k := keys.iteration_of_barrier(key)) is not None}

    def shut_down(self) -> None:
        """Called from the watchdog's thread: frees the call that is blocked on this connection."""
        self.broken = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def reconnect(self, deadline: float) -> None:
        """Replace the broken client by a new one; `deadline` is on time.monotonic().

        Raises StoreUnreachableError when no server answered by then.
        """
        self._close_socket()
        reason = "it accepts connections but does not answer"
        while True:
            attempt = _Attempt(self._store)
            while not attempt.ended.wait(0.1) and time.monotonic() < deadline:
                pass
            if attempt.store is not None:
                let_go(self._store)
                self._adopt(attempt.store)
                self.broken = False
                return
            reason = attempt.reason or reason
            if time.monotonic() >= deadline:
                raise StoreUnreachableError(f"the store at {address(self._store)} cannot be reached: {reason}")
            time.sleep(0.05)

    def close(self) -> None:
        _watchdog.forget(self)
        self.broken = True
        self._close_socket()
        let_go(self._store)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Attempt:
    """One attempt to connect, in a thread of its own: on a stopped server `clone()` blocks for as long as the server is stopped."""

    def __init__(self, origin: Store) -> None:
        self.store: Store | None = None
        self.reason = ""
        self.ended = threading.Event()
        self._origin = origin
        threading.Thread(target=self._run, name="coxless-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            # A clone of a store that is not there retries for its whole timeout, prints stack traces, and aborts the process should it
            # end meanwhile. A plain socket says the same at once.
            where = _host_and_port(self._origin)
            if where is not None:
                socket.create_connection(where, timeout=CONNECT_TIMEOUT.total_seconds()).close()
            store = self._origin.clone()
            store.check([keys.REGISTER])  # a reply proves that the server serves
            self.store = store
        except (RuntimeError, OSError) as error:  # DistNetworkError and the like
            self.reason = str(error).partition("\n")[0]
        finally:
            self.ended.set()


class _Watchdog:
    """One thread for all connections of the process. It counts its own ticks instead of reading a clock, so that a process that was
    frozen (SIGSTOP) does not take its own absence for the store's."""

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._pid = 0

    def watch(self, connection: Connection) -> None:
        with self._lock:
            self._connections.add(connection)
            if self._pid != os.getpid():  # threads do not survive fork
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="coxless-watchdog", daemon=True).start()

    def forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _run(self) -> None:
        flights: weakref.WeakKeyDictionary[Connection, tuple[int, int]] = weakref.WeakKeyDictionary()
        while True:
            time.sleep(_TICK)
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                flight = connection.flight
                before, ticks = flights.get(connection, (flight, 0))
                ticks = ticks + 1 if flight % 2 and flight == before else 0
                flights[connection] = (flight, ticks)
                if ticks * _TICK > REPLY_LIMIT and not connection.broken:
                    logger.warning("the store did not answer for %.1f s: giving up this connection", ticks * _TICK)
                    connection.shut_down()
            del connections


_watchdog = _Watchdog()


def has_native_barrier(store: Store) -> bool:
    """Whether Store.barrier is one command of this store's server (of etcd one transaction). Under a PrefixStore it is several, on keys of its own; older torch
    has none."""
    return (isinstance(store, TCPStore) and hasattr(store, "barrier")) or getattr(store, "native_barrier", False)


def _timed_out(error: RuntimeError) -> bool:
    """False for the error of a wait whose time is over; raises any other again."""
    if isinstance(error, DistStoreError) or "imeout" in str(error):  # FileStore's is a plain RuntimeError
        return False
    raise error


def _client_socket(store: Store) -> socket.socket | None:
    """A duplicate of the client's socket, to shut it down with; None for a store that has none (HashStore, FileStore)."""
    match = re.search(r"client=.*?\bfd=(\d+)", repr(unwrapped(store)))
    return None if match is None else socket.socket(fileno=os.dup(int(match.group(1))))


def address(store: Store) -> str:
    """host:port of a TCPStore, the members and the run in etcd, else the kind of store; for messages."""
    if etcd := as_etcd(store):
        return str(etcd.etcd)
    where = _host_and_port(store)
    return type(store).__name__ if where is None else f"{where[0]}:{where[1]}"


def _host_and_port(store: Store) -> tuple[str, int] | None:
    store = unwrapped(store)
    host, port = getattr(store, "host", None), getattr(store, "port", None)
    return None if host is None or port is None else (host, port)


def _text(key: str, value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise CorruptStoreError(
            f"the store's key {key!r} holds {value[:60]!r}, which is not text: is another program using it?"
        ) from None

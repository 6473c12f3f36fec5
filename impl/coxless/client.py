"""Clients of a store: making another one, and what is to be known about one."""

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import FileStore, PrefixStore, Store, TCPStore

from . import keys
from .stores import as_etcd
from .stores import base_of as base_of  # for everybody

CONNECT_TIMEOUT = timedelta(seconds=10)
"""How long connecting to a store may take, unless the caller says otherwise."""
CLIENT_TIMEOUT = timedelta(seconds=2)
"""The time limit of a client that is cloned, and so of one attempt to connect."""
LOCKED_LIMIT = timedelta(seconds=1)
"""How long a call may take that keeps the interpreter lock meanwhile."""


def fresh_client(origin: Store) -> Store:
    """Another client of the store that `origin` is a client of, whether or not that one still works; the server has answered it.

    Blocks for as long as the server is stopped: to be called under an `Attempt`. Raises OSError and RuntimeError.
    """
    where = host_and_port(origin)
    if where is not None:
        # A clone of a store that is not there retries for its whole timeout, prints stack traces, and aborts the process should it end
        # meanwhile. A plain socket says the same at once.
        socket.create_connection(where, timeout=CLIENT_TIMEOUT.total_seconds()).close()
    client = cloned(origin)
    client.check([keys.REGISTER])  # a reply proves that the server serves
    return client


def can_clone(store: Store) -> bool:
    """False for a PrefixStore of a torch that has no Store.clone (before 2.8): it does not tell its prefix."""
    return hasattr(store, "clone") or not isinstance(store, PrefixStore)


def cloned(origin: Store) -> Store:
    """`origin.clone()`, also where torch has none: then of a store without a prefix."""
    if hasattr(origin, "clone"):
        return origin.clone()
    if isinstance(origin, TCPStore):
        return TCPStore(origin.host, origin.port, is_master=False, wait_for_workers=False, timeout=origin.timeout, use_libuv=True)
    if isinstance(origin, FileStore):
        again = FileStore(origin.path, -1)
        again.set_timeout(origin.timeout)
        return again
    return origin  # a HashStore: it has no connection, and a wait in one thread does not keep the others out


def has_native_barrier(store: Store) -> bool:
    """Whether Store.barrier is one command of this store's server (of etcd one transaction). Under a PrefixStore it is several, on keys of its own; older torch
    has none."""
    return (isinstance(store, TCPStore) and hasattr(store, "barrier")) or getattr(store, "native_barrier", False)


def runs_server(store: Store) -> bool:
    """Whether the server of this store runs in this process, and ends with it. Only its text tells."""
    return re.search(r"server=TCPServer\(", repr(base_of(store))) is not None


def client_socket(store: Store) -> socket.socket | None:
    """A duplicate of the client's socket, to shut it down with; None for a store that has none (HashStore, FileStore)."""
    match = re.search(r"client=.*?\bfd=(\d+)", repr(base_of(store)))
    return None if match is None else socket.socket(fileno=os.dup(int(match.group(1))))


@contextlib.contextmanager
def reply_within(client: socket.socket | None, limit: timedelta = LOCKED_LIMIT) -> Iterator[None]:
    """A reply that does not come within `limit` is a DistNetworkError ("Socket Timeout"), after which the client is of no use; `client`: a
    duplicate of its socket.

    For list_keys and queue_len, in which torch (2.13, 2.14) keeps the interpreter lock: while one of them waits, no other thread of
    the process runs, no watchdog and no signal handler, and only the kernel can end it (`tests/impl/test_tcpstore_facts.py`).
    """
    if client is None:
        yield
        return
    seconds, rest = divmod(limit, timedelta(seconds=1))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", seconds, rest.microseconds))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # shut down meanwhile
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 0))


def address(store: Store) -> str:
    """host:port of a TCPStore, the members and the run in etcd, else the kind of store; for messages."""
    if etcd := as_etcd(store):
        return str(etcd.etcd)
    where = host_and_port(store)
    return type(store).__name__ if where is None else f"{where[0]}:{where[1]}"


def host_and_port(store: Store) -> tuple[str, int] | None:
    """Where the server is; None for a store without one."""
    base = base_of(store)
    host, port = getattr(base, "host", None), getattr(base, "port", None)
    return None if host is None or port is None else (host, port)

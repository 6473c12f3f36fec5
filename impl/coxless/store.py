"""Getting a store: from an address, from the environment, or inside one's own process."""

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar

from .torch_environment import quiet_torch

quiet_torch()

from torch import __version__ as torch_version  # noqa: E402
from torch.distributed import DistError, FileStore, HashStore, Store, TCPStore  # noqa: E402

from .address import Address, EtcdAddress, FileAddress, TcpAddress, parse  # noqa: E402
from .attempt import Attempt  # noqa: E402
from .binding import bind, listen  # noqa: E402
from .client import CONNECT_TIMEOUT, base_of, can_clone, client_socket, fresh_client, reply_within  # noqa: E402
from .client import address as address_of  # noqa: E402
from .errors import CoxlessError, StoreUnreachableError, UnfitStoreError  # noqa: E402
from .stores import as_etcd  # noqa: E402

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIT = "a TCPStore with use_libuv=True, an EtcdStore, a HashStore or a FileStore, or a PrefixStore over one of them"


def connect(address: str, *, timeout: timedelta = CONNECT_TIMEOUT) -> Store:
    """A client of the store at `address`: a TCPStore server ("host:port" or "tcp://host:port"), etcd ("etcd://host:2379,host:2379/run"), or a
    file that all ranks see ("file:///path").

    A server that is not up yet is waited for, until `timeout` is over.

    Raises ValueError for an address that is none, StoreUnreachableError when no store answered in time, UnfitStoreError when the one
    that answered cannot carry the protocol, CoxlessError for etcd without the extra `coxless[etcd]`.
    """
    parsed = parse(address)
    if not isinstance(parsed, TcpAddress):
        return _other(parsed, address, timeout)
    host, port = parsed.host, parsed.port
    deadline = time.monotonic() + timeout.total_seconds()
    # TCPStore's own time limit holds for each phase of connecting (3 s took 7.9 s) and not at all for a server that is stopped, so
    # a plain socket finds out first whether anything listens, and the client is made under a deadline.
    _wait_for_listener(host, port, deadline, timeout)
    return _within(deadline, timeout, lambda: _fit_client(host, port, timeout), _joined(host, port))


def embedded_store(rank: int, host: str, port: int, *, timeout: timedelta = CONNECT_TIMEOUT) -> Store:
    """A store without a server process: rank 0 runs it in its own process, at `host`:`port`; the other ranks connect to it.

    It is enough for a run in which rank 0 is not expected to die: the store ends with rank 0's process, or as soon as nothing in it
    refers to the returned object (clones do not keep a server alive), and a restarted rank 0 starts with an empty one.

    Raises ValueError for a `host` that is not an address of rank 0's machine, StoreUnreachableError when rank 0 is not there in time.
    """
    if rank != 0:
        return connect(_joined(host, port), timeout=timeout)
    # multi_tenant: init_process_group("env://") in this process finds this server at MASTER_PORT and shares it, instead of failing on the port.
    return listen(bind(host, port), host, multi_tenant=True, timeout=timeout)


def store_from_env(*, timeout: timedelta = CONNECT_TIMEOUT, environment: Mapping[str, str] = os.environ) -> Store:
    """The store that the launcher of this process means: the one at COXLESS_STORE if that is set (`coxless run` does), under torchrun
    the store of its agent (it outlives the ranks), else one embedded in rank 0 at MASTER_ADDR:MASTER_PORT.

    Raises ValueError when the environment names no store, and what `connect` and `embedded_store` raise.
    """
    if address := environment.get("COXLESS_STORE"):
        return connect(address, timeout=timeout)
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if not host or not port:
        raise ValueError(
            "no store is named: set COXLESS_STORE=host:port or etcd://… (or MASTER_ADDR and MASTER_PORT), or start this with 'coxless run'"
        )
    host, number = parse_address(f"{host}:{port}" if ":" not in host else f"[{host}]:{port}")
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return connect(_joined(host, number), timeout=timeout)
    rank = environment.get("RANK", "")
    if not re.fullmatch("[0-9]{1,6}", rank):
        raise ValueError(
            f"RANK is {rank!r}: it must be a number from 0 on, set by the launcher, to know which process runs the store"
        )
    return embedded_store(int(rank), host, number, timeout=timeout)


def refuse_unfit(store: Store, *, timeout: timedelta = CONNECT_TIMEOUT) -> None:
    """Raise UnfitStoreError for a store on which the protocol cannot run. One round trip to a TCPStore, on a connection of its own.

    Raises StoreUnreachableError when its server does not answer within `timeout`.
    """
    base = base_of(store)
    _refuse_kind(base)
    if not can_clone(store):
        raise UnfitStoreError("a PrefixStore can be cloned from torch 2.8 on only: give join the store under it, or its address")
    if isinstance(base, TCPStore) and hasattr(base, "queue_len"):
        deadline = time.monotonic() + timeout.total_seconds()
        _within(deadline, timeout, lambda: _refuse_unfit_server(fresh_client(base)), address_of(base))


def _refuse_kind(base: Store) -> None:
    if isinstance(base, HashStore | FileStore) or as_etcd(base) is not None:
        return
    if not isinstance(base, TCPStore):
        raise UnfitStoreError(f"{type(base).__name__} is not known to wake its waiters as the protocol needs; use {_FIT}")
    if not base.libuvBackend:
        raise UnfitStoreError(f"the TCPStore at {base.host}:{base.port} {_NO_LIBUV}")


_NO_LIBUV = (
    "was started with use_libuv=False, where compare_set wakes no waiter; start it with use_libuv=True, or with 'coxless serve'"
)
_NO_QUEUES = f"{_NO_LIBUV} (or by a torch before 2.8: then with the torch that the ranks have)"
_NO_BARRIER = (
    f"was started by an older torch, which has no barrier command; start it with the one that the ranks have ({torch_version})"
)


def _refuse_unfit_server(client: TCPStore) -> TCPStore:
    """`libuvBackend` is only what the client was told, and what the client can ask is not what the server can answer. A server cannot be
    asked which it is, but one that does not know a command hangs up, and the client is lost: only libuv's knows queues, only a newer one
    the barrier. (Older torch cannot ask either: then trust the client.) A connection may also be cut by something else: so each question is
    put twice. Returns the client that was answered."""
    for command, question, problem in (
        ("queue_len", _count_nothing, _NO_QUEUES),
        ("barrier", _meet_alone, _NO_BARRIER),
    ):
        refusals = 0
        while hasattr(client, command):
            try:
                question(client)
                break
            except RuntimeError as error:
                client = fresh_client(client)  # raises where the server has died; if it lives, what failed was the question
                refusals += _TIMED_OUT not in str(error)  # else it was asked while the server hung, and that is all
            if refusals == 2:
                raise UnfitStoreError(f"the TCPStore at {client.host}:{client.port} {problem}")
    return client


_TIMED_OUT = "Socket Timeout"


def _count_nothing(client: TCPStore) -> None:
    own_socket = client_socket(client)
    with contextlib.nullcontext() if own_socket is None else own_socket, reply_within(own_socket):
        client.queue_len("coxless")


def _meet_alone(client: TCPStore) -> None:
    key = f"coxless:{os.urandom(8).hex()}"
    client.barrier(key, 1)
    client.delete_key(key)


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port", "tcp://host:port" or "[v6]:port". Raises ValueError."""
    parsed = parse(address)
    if not isinstance(parsed, TcpAddress):
        raise ValueError(f"{str(parsed)!r} is not the address of a TCPStore: that has the form host:port")
    return parsed.host, parsed.port


def _other(parsed: Address, address: str, timeout: timedelta) -> Store:
    if isinstance(parsed, FileAddress):
        if not parsed.path.parent.is_dir():
            raise StoreUnreachableError(
                f"there is no folder {parsed.path.parent} for the store {parsed}: make it first, where all ranks see it"
            )
        file = FileStore(str(parsed.path), -1)  # a store of no fixed number of clients, none of which deletes the file
        file.set_timeout(timeout)
        return file
    assert isinstance(parsed, EtcdAddress)
    try:
        from .stores.etcd import EtcdStore
    except ModuleNotFoundError as error:
        raise CoxlessError(f"{parsed} needs the extra 'etcd' ({error.name} is missing): pip install 'coxless[etcd]'") from None
    try:
        return EtcdStore(address, timeout)
    except DistError as error:  # out of reach, or it refuses the login
        raise StoreUnreachableError(str(error)) from None


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wait_for_listener(host: str, port: int, deadline: float, timeout: timedelta) -> None:
    pause = 0.02
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())) as probe:
                # A client that knocks at a closed port of its own machine can be given that very port, and so meet itself.
                if probe.getsockname() != probe.getpeername():
                    return
                reason = "connection refused"
        except socket.gaierror as error:
            reason = f"the host name is not known ({error.strerror})"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        if time.monotonic() + pause >= deadline:
            raise StoreUnreachableError(
                f"no store at {_joined(host, port)} within {timeout.total_seconds():g} s: {reason}. Is it running ('coxless serve'), and is the address right?"
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _fit_client(host: str, port: int, timeout: timedelta) -> TCPStore:
    limit = max(timedelta(seconds=1), timeout)  # also of what is waited for with this client
    return _refuse_unfit_server(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit, use_libuv=True))


def _within(deadline: float, timeout: timedelta, action: Callable[[], T], address: str) -> T:
    attempt = Attempt(action)
    if not attempt.ended(deadline - time.monotonic()):
        raise StoreUnreachableError(
            f"something listens at {address} but does not answer as a store within {timeout.total_seconds():g} s: "
            "is it hung, or another kind of server?"
        )
    try:
        return attempt.result()
    except CoxlessError:
        raise
    except (RuntimeError, OSError) as error:  # DistNetworkError and the like
        reason = str(error).partition("\n")[0]
        raise StoreUnreachableError(f"the store at {address} does not answer as one: {reason}") from error

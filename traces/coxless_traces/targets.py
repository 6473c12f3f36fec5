"""The stores that a trace can be replayed on: a dict, torch's HashStore, a TCPStore server process, and etcd.

A *line* is one process's connection. Every operation is performed at once: a wait is only asked for a key that is there, since
patience is an answer of the replay and not of a clock.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Protocol

from coxless.address import redacted
from coxless.connection import Connection
from coxless.errors import CoxlessError
from coxless.keys import OPENED, without_ending
from coxless.protocol import Operation
from coxless.protocol.operations import Add, Append, Barrier, CompareSet, Delete, Read, ReadHeartbeat, Set, Wait
from coxless.server import start_server
from coxless.store import connect
from coxless.stores import let_go

Perform = Callable[[Operation], object]


class Line(Protocol):
    def perform(self, operation: Operation) -> object:
        """The reply, as a protocol generator gets it; of a heartbeat its text."""
        ...

    def close(self) -> None: ...


class Target(Protocol):
    name: str

    def open(self) -> Line:
        """A new connection to the store as it is now."""
        ...

    def contents(self) -> dict[str, str]:
        """Everything that the store holds."""
        ...

    def clear(self) -> None:
        """What a server that was started again holds: nothing."""
        ...


class Memory:
    """A dict with TCPStore's semantics: the quickest target, and the oracle for the quirks."""

    name = "memory"

    def __init__(self) -> None:
        self.data: dict[str, str] = {}

    def open(self) -> "Memory":
        return self

    def close(self) -> None:
        pass

    def contents(self) -> dict[str, str]:
        return dict(self.data)

    def clear(self) -> None:
        self.data.clear()

    def perform(self, operation: Operation) -> object:
        data = self.data
        match operation:
            case CompareSet(_, key, expected, desired):
                if data.get(key, "") == expected and (key in data or expected == ""):
                    data[key] = desired
                return data.get(key, expected)
            case Read(_, key):
                return data.get(key)
            case Add(_, key, amount):
                data[key] = str(int(data.get(key, "0")) + amount)
                return int(data[key])
            case Set(_, key, value):
                data[key] = value
            case Append(_, key, value):
                data[key] = data.get(key, "") + value
            case Barrier(_, key, size):
                data[key] = str(int(data.get(key, "0")) + 1)
                return int(data[key]) >= size
            case Wait(_, key):
                return key in data
            case Delete(_, key):
                data.pop(key, None)
            case ReadHeartbeat(_, member):
                return data.get(f"heartbeat_{member}")
        return None


class Wire:
    """The implementation's own connection. `set` and `append` have no reply: a read after them proves that the server has come to
    them, so that the look at the contents, over another connection, cannot overtake them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def perform(self, operation: Operation) -> object:
        connection = self._connection
        match operation:
            case CompareSet(_, key, expected, desired):
                return connection.compare_set(key, expected, desired)
            case Read(_, key):
                return connection.read(key)
            case Add(_, key, amount):
                return connection.add(key, amount)
            case Set(_, key, value):
                connection.set(key, value)
                connection.read(key)
            case Append(_, key, value):
                connection.append(key, value)
                connection.read(key)
            case Barrier(_, key, size):
                # Counted at once; that the rank then waits is the trace's to say, not a clock's. On a busy machine the reply may
                # take longer than this: then the count tells what it would have been.
                through = connection.barrier(key, size, timedelta(milliseconds=1))
                return through or int(connection.read(key) or "0") >= size
            case Wait(_, key):
                return connection.wait(key, timedelta(seconds=1))
            case Delete(_, key):
                connection.delete(key)
            case ReadHeartbeat(_, member):
                return connection.read(f"heartbeat_{member}")
        return None

    def close(self) -> None:
        self._connection.close()


class Torch:
    """Any store of torch.distributed; `store` is the replay's own client, over which it looks at the contents. With an address, other
    processes can use it too."""

    def __init__(self, name: str, store: "object", address: str | None = None) -> None:
        from torch.distributed import Store

        assert isinstance(store, Store)
        self.name = name
        self.store = store
        self.address = address

    def open(self) -> Wire:
        return Wire(Connection(self.store))

    def contents(self) -> dict[str, str]:
        # Where the barrier is no single command, its emulation has two keys of its own.
        names = [name for name in self.store.list_keys() if not name.endswith(OPENED)]
        values = self.store.multi_get(names) if names else []
        return {without_ending(name): value.decode() for name, value in zip(names, values, strict=True)}

    def clear(self) -> None:
        for name in self.store.list_keys():
            self.store.delete_key(name)


NAMES = ("tcp", "etcd", "hash", "memory")


@contextlib.contextmanager
def target(name: str, address: str | None = None) -> Iterator[Target]:
    """The target of this name: "memory", "hash", "tcp" or "etcd". The last two start a server for the time of the block, unless the
    address of a store is given, which must be empty.

    Raises ValueError for another name, or for a store at `address` that is not empty; what `connect` raises; CoxlessError where etcd is
    not installed.
    """
    if name == "memory":
        yield Memory()
    elif name == "hash":
        from torch.distributed import HashStore

        yield Torch(name, HashStore())
    elif name in ("tcp", "etcd"):
        with contextlib.ExitStack() as stack:
            if address is None:
                address = stack.enter_context(_tcp() if name == "tcp" else _etcd())
            store = connect(address)
            stack.callback(let_go, store)
            if store.list_keys():
                raise ValueError(f"the store at {redacted(address)} holds keys already: a replay needs one of its own")
            yield Torch(name, store, address)
    else:
        raise ValueError(f"there is no target {name!r}: {', '.join(NAMES)}")


@contextlib.contextmanager
def _tcp() -> Iterator[str]:
    with start_server() as server:
        yield server.address


@contextlib.contextmanager
def _etcd() -> Iterator[str]:
    try:
        from coxless.stores.local_etcd import LocalEtcd
    except ModuleNotFoundError as error:
        raise CoxlessError(
            f"the target 'etcd' needs the extra 'etcd' ({error.name} is missing): pip install 'coxless[etcd]'"
        ) from None
    with LocalEtcd() as cluster:
        yield cluster.address("replay")

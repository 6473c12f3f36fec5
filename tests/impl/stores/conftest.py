"""The stores that one set of tests is run on: TCPStore and EtcdStore with all of it, HashStore and FileStore where they promise the same."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.distributed import FileStore, HashStore, Store

from coxless.server import StoreServer, start_server
from coxless.store import connect
from coxless.stores import let_go

from ...conftest import NO_BARRIER

ALL = ("TCPStore", "EtcdStore", "HashStore", "FileStore")
FULL = ("TCPStore", "EtcdStore")


@pytest.fixture(scope="session")
def tcp_server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


def make(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    match kind:
        case "TCPStore":
            # list_keys sees the whole server, and under a PrefixStore the barrier is another one: so a server for each test that asks.
            server: StoreServer = request.getfixturevalue("tcp_server")
            store = connect(server.address)
            for key in store.list_keys():
                store.delete_key(key)
            return store
        case "EtcdStore":
            return connect(request.getfixturevalue("new_run")())
        case "HashStore":
            return HashStore()
    return FileStore(str(tmp_path / "store"), -1)


@pytest.fixture(params=ALL)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every kind of store."""
    made = make(request.param, request, tmp_path)
    yield made
    let_go(made)


@pytest.fixture(params=FULL)
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The two that several machines can share, and that keep all of the promises."""
    made = make(request.param, request, tmp_path)
    yield made
    let_go(made)


@pytest.fixture
def barring(full: Store) -> Store:
    """One of the two whose barrier is one operation; skipped where torch's own has none yet."""
    if not hasattr(full, "barrier"):
        pytest.skip(NO_BARRIER)
    return full


@pytest.fixture(params=[*FULL, "FileStore"])
def shared_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that several processes can open, empty of this test's keys."""
    if request.param == "FileStore":
        return f"file://{tmp_path}/store"
    if request.param == "TCPStore":
        server: StoreServer = request.getfixturevalue("tcp_server")
        return server.address
    address: str = request.getfixturevalue("new_run")()
    return address


@pytest.fixture
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Store]:
    """A store of the kind that is named."""
    return lambda kind: make(kind, request, tmp_path)

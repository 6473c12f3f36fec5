"""Stores for the tests of the library."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import coxless
from coxless.binding import bind, listen
from coxless.server import StoreServer, start_server


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


@pytest.fixture
def address(server: StoreServer) -> str:
    """The server, emptied: where torch cannot list the keys, started again."""
    store = coxless.connect(server.address)
    if hasattr(store, "list_keys"):
        for key in store.list_keys():
            store.delete_key(key)
    else:
        server.stop()
        server.start()
    return server.address


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)


@pytest.fixture
def store() -> Any:
    return listen(bind("127.0.0.1", 0), "127.0.0.1")

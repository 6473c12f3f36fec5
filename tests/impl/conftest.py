"""Stores for the tests of the library."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

import coxless
from coxless.server import StoreServer, start_server


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


@pytest.fixture
def address(server: StoreServer) -> str:
    """The server, emptied."""
    store = coxless.connect(server.address)
    for key in store.list_keys():
        store.delete_key(key)
    return server.address


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)


@pytest.fixture
def store() -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())

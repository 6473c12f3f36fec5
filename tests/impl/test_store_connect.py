"""Getting a store: addresses, stores that are not there, embedded stores, and stores that cannot carry the protocol."""

import os
import signal
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import FileStore, HashStore, PrefixStore, Store, TCPStore

import coxless
from coxless.binding import AddressError
from coxless.errors import StoreUnreachableError, UnfitStoreError
from coxless.server import StoreServer, start_server
from coxless.store import connect, embedded_store, parse_address, refuse_unfit, store_from_env

from .crews import QUICK, crew_of, in_threads, stopped

SOON = timedelta(seconds=0.5)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("form", ["{}", "tcp://{}"])
def test_connect(server: StoreServer, form: str) -> None:
    store = connect(form.format(server.address))
    store.set("connect", "x")
    assert connect(server.address).get("connect") == b"x"


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("a.b:1", ("a.b", 1)),
        ("tcp://10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("tcp://[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":29400", "host:port", "host:0", "host:65536", "host:-1", "http://host:80", "::1:80", "host:80/x"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a store: it has the form host:port"):
        connect(address)


def test_a_store_that_is_not_there(free_port: int) -> None:
    with pytest.raises(StoreUnreachableError, match=rf"no store at 127.0.0.1:{free_port} within 0.5 s: connection refused"):
        connect(f"127.0.0.1:{free_port}", timeout=SOON)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(StoreUnreachableError, match="the host name is not known"):
        connect("no-such-host.invalid:29400", timeout=SOON)


def test_a_server_that_comes_late_is_waited_for(free_port: int) -> None:
    found: list[Store] = []
    thread = threading.Thread(target=lambda: found.append(connect(f"127.0.0.1:{free_port}", timeout=timedelta(seconds=60))))
    thread.start()
    server = TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)
    thread.join()
    server.set("k", "v")
    assert found[0].get("k") == b"v"


def test_another_kind_of_server_is_told_apart() -> None:
    """It accepts and says nothing, as a stopped store does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnreachableError, match=f"listens at 127.0.0.1:{port} but does not answer as a store"):
            connect(f"127.0.0.1:{port}", timeout=SOON)


@pytest.mark.processes
def test_a_stopped_server_is_an_error_in_bounded_time() -> None:
    """TCPStore's own timeout would not come back before the server does."""
    with start_server() as server:
        stopped(server.pid)
        try:
            with pytest.raises(StoreUnreachableError, match=f"listens at {server.address} but does not answer as a store"):
                connect(server.address, timeout=SOON)
        finally:
            os.kill(server.pid, signal.SIGCONT)


# -- embedded


def test_embedded(free_port: int) -> None:
    host = embedded_store(0, "127.0.0.1", free_port)
    guest = embedded_store(1, "127.0.0.1", free_port)
    guest.set("k", "v")
    assert host.get("k") == b"v"
    refuse_unfit(host)
    with pytest.raises(ConnectionRefusedError):  # bound to its address only
        socket.create_connection(("127.0.0.2", free_port))


@pytest.mark.processes
def test_an_embedded_store_ends_with_rank_0(free_port: int) -> None:
    code = (
        "import sys; from coxless.store import embedded_store\n"
        "s = embedded_store(0, '127.0.0.1', int(sys.argv[1])); s.set('k', 'v'); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(free_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as rank_0:
        assert rank_0.stdout is not None
        rank_0.stdout.readline()
        guest = embedded_store(1, "127.0.0.1", free_port)
        assert guest.get("k") == b"v"
        rank_0.kill()
        rank_0.wait()
        with pytest.raises(RuntimeError):
            guest.check(["k"])


@pytest.mark.processes
def test_rank_0_does_not_take_an_embedded_store_away_from_those_who_are_not_done(free_port: int) -> None:
    code = (
        "import os, time, coxless\n"
        "with coxless.join_from_env() as crew:\n"
        "    for iteration in crew.iterations(until=5): pass\n"
        "    if crew.rank == 1: time.sleep(2); print(crew.get_global_iteration(), flush=True)\n"
    )
    usual = {name: value for name, value in os.environ.items() if name != "COXLESS_STORE"}
    usual |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], env={**usual, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["", "6\n"]
        assert [rank.returncode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


def test_rank_0_waits_for_the_others_only_so_long(
    free_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coxless.crew.LAST_OUT_PATIENCE", 0.3)
    store = embedded_store(0, "127.0.0.1", free_port)
    left = threading.Event()

    def body(rank: int) -> None:
        with crew_of(f"127.0.0.1:{free_port}", 1, 2) if rank else coxless.join(store, rank=0, world_size=2, **QUICK) as crew:
            crew.advance()
            assert rank == 0 or left.wait(60)
        left.set()

    in_threads(2, body)
    assert "rank 0 runs the store in its own process: it is gone with it for ranks 1" in caplog.text


def test_an_embedded_store_cannot_be_at_an_address_of_another_machine() -> None:
    with pytest.raises(AddressError, match=r"192.0.2.1 is not an address of this machine"):
        embedded_store(0, "192.0.2.1", 29400)


def test_init_process_group_shares_an_embedded_store(free_port: int) -> None:
    code = (
        "import sys; from coxless.store import store_from_env; import torch.distributed as dist\n"
        "store = store_from_env(); dist.init_process_group('gloo'); dist.barrier(); store.set('k', 'v'); assert store.get('k') == b'v'\n"
        "dist.destroy_process_group()"
    )
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "1", "RANK": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "COXLESS_STORE"} | ranks
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


# -- from the environment


def test_the_store_of_the_environment(server: StoreServer, free_port: int) -> None:
    host, port = server.host, str(server.port)
    connect(server.address).set("mine", "yes")
    nowhere = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "RANK": "0"}
    assert store_from_env(environment={"COXLESS_STORE": server.address, **nowhere}).get("mine") == b"yes"
    torchrun = {"MASTER_ADDR": host, "MASTER_PORT": port, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert store_from_env(environment=torchrun).get("mine") == b"yes"
    embedded = store_from_env(environment=nowhere)
    assert not embedded.check(["mine"])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no store is named: set COXLESS_STORE=host:port"),
        ({"MASTER_ADDR": "127.0.0.1"}, "no store is named"),
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x", "RANK": "0"}, "'127.0.0.1:x' is not the address of a store"),
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}, "RANK is ''"),
        ({"COXLESS_STORE": "nonsense"}, "'nonsense' is not the address of a store"),
    ],
)
def test_an_environment_that_names_no_store(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store_from_env(environment=environment)


# -- fit or not


def test_fit_stores_are_accepted(server: StoreServer, tmp_path: Path) -> None:
    for store in (connect(server.address), HashStore(), FileStore(str(tmp_path / "store"), 1)):
        refuse_unfit(store)
        refuse_unfit(PrefixStore("a", PrefixStore("b", store)))


@pytest.mark.parametrize("client_says", [False, True])
def test_a_server_without_libuv_is_refused_whatever_the_client_says(client_says: bool) -> None:
    master = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=False)
    client = TCPStore("127.0.0.1", master.port, is_master=False, wait_for_workers=False, use_libuv=client_says)
    if client_says and not hasattr(client, "queue_len"):
        pytest.skip("this torch has no queues to ask for")
    for store in (client, PrefixStore("p", client)):
        with pytest.raises(UnfitStoreError, match="was started with use_libuv=False, where compare_set wakes no waiter"):
            refuse_unfit(store)
    client.set("k", "v")  # the question did no harm
    assert client.get("k") == b"v"
    with pytest.raises(UnfitStoreError):
        connect(f"127.0.0.1:{master.port}")


def test_an_unknown_store_is_refused() -> None:
    class Own(Store):  # type: ignore[misc]  # torch's types are not followed
        pass

    with pytest.raises(UnfitStoreError, match="Own is not known to wake its waiters"):
        refuse_unfit(Own())


# -- how many clients


def test_a_rank_makes_three_clients(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is given, the training thread's, the heartbeat's. Each looks up a host name when it is made, which may take a second."""
    made: list[str] = []
    clone, init = Store.clone, TCPStore.__init__

    def cloned(self: TCPStore) -> Store:
        made.append("clone")
        return clone(self)

    def new(self: TCPStore, *arguments: Any, **options: Any) -> None:
        made.append("new")
        init(self, *arguments, **options)

    monkeypatch.setattr(TCPStore, "clone", cloned, raising=False)
    monkeypatch.setattr(TCPStore, "__init__", new)
    with crew_of(server.address, 0, 1) as crew:
        crew.advance()
    assert sorted(made) == ["clone", "clone", "new"]

"""The proxy in front of a real store: it tells requests apart as torch sends them, and cuts where and when it is told to."""

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, DistStoreError

import coxless
from coxless import keys
from coxless.connection import Connection
from coxless.protocol.operations import ConnectionBroken
from coxless.records import Member, Record, genesis
from coxless.server import StoreServer, start_server
from coxless_traces.names import name_of
from coxless_traces.proxy import Point, Proxy
from coxless_traces.wire import Requests, UnknownRequest

SOON = timedelta(milliseconds=50)


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: StoreServer) -> Iterator[Proxy]:
    with Proxy(server.address, listen=True) as running:
        yield running


def test_every_request_of_torchs_client_is_understood(proxy: Proxy) -> None:
    proxy.begin()
    store = coxless.connect(proxy.addresses[0])
    store.set("a", "1" * 5000)
    store.get("a")
    store.add("n", 3)
    store.compare_set("a", "", "x")
    store.append("b", "1")
    store.check(["a", "b"])
    with pytest.raises(DistStoreError):
        store.wait(["missing"], SOON)
    store.delete_key("b")
    store.num_keys()
    store.multi_set(["a", "b"], ["1", "2"])
    store.multi_get(["a", "b"])
    expected = """validate, ping, set a, wait a, get a, add n, compare_set a, append b, check a, wait missing, cancel_wait, delete_key b,
        num_keys, multi_set a, wait a, multi_get a"""
    if hasattr(store, "barrier"):
        store.barrier("bar", 1, SOON)
        store.list_keys()
        expected += ", barrier bar, list_keys"
    asked_by_connect = ("queue_len coxless", "barrier coxless:", "delete_key coxless:")
    said = [each.request for each, _ in proxy.said() if not each.request.startswith(asked_by_connect)]
    assert said == [each.strip() for each in expected.split(",")]


def test_a_request_that_comes_in_pieces_is_one_request() -> None:
    whole = b"\x01" + (2).to_bytes(8, "little") + b"/k" + (1).to_bytes(8, "little") + b"v"
    parser = Requests()
    found = [request for byte in whole for request in parser.feed(bytes([byte]))]
    assert [(str(request), request.data) for request in found] == [("set k", whole)]
    with pytest.raises(UnknownRequest):
        parser.feed(b"GET / HTTP/1.1")


@pytest.mark.parametrize(
    ("how", "applied"),
    [
        ("request lost", False),
        ("request lost, reset", False),
        ("half a request", False),
        ("reply lost", True),
        ("reply lost, reset", True),
        ("half a reply", True),
    ],
)
def test_a_cut_is_exactly_where_it_was_asked_for(proxy: Proxy, server: StoreServer, how: str, applied: bool) -> None:
    direct = coxless.connect(server.address)
    before = direct.add("cut", 0)
    store = coxless.connect(proxy.addresses[0])
    proxy.begin(Point(0, 0, 3, how))
    through = store.clone()  # validate, ping
    assert through.add("cut", 0) == before
    assert proxy.done() is None
    with pytest.raises(DistNetworkError):
        through.add("cut", 1)
    assert proxy.done() == f"add cut: {how}"
    assert direct.add("cut", 0) == before + applied


def test_a_wait_is_cut_while_it_waits(proxy: Proxy) -> None:
    store = coxless.connect(proxy.addresses[0])
    proxy.begin(Point(0, 0, 2, "while it waits"))
    through = store.clone()
    with pytest.raises(DistNetworkError):
        through.wait(["never"], timedelta(seconds=60))
    assert proxy.done() == "wait never: while it waits"


def test_the_reply_to_a_wait_that_has_timed_out_is_that_to_its_end(proxy: Proxy) -> None:
    """Which is no point of its own; and a cut that would have to wait for it has not come."""
    store = coxless.connect(proxy.addresses[0])
    proxy.begin(Point(0, 0, "wait never #1", "reply lost"))
    through = store.clone()
    with pytest.raises(DistStoreError):
        through.wait(["never"], SOON)
    assert through.add("after", 0) == 0
    assert proxy.done() is None
    ways = {said.name: ways for said, ways in proxy.said()}
    assert "reply lost" not in ways["wait never #1"]
    assert "reply lost" in ways["cancel_wait #1"]


def test_a_point_is_found_by_name_whatever_is_said_before_it(proxy: Proxy) -> None:
    store = coxless.connect(proxy.addresses[0])
    proxy.begin(Point(0, 0, "add named #2", "request lost"))
    through = store.clone()
    for _ in range(3):
        through.check(["other"])
    assert through.add("named", 1) == 1
    with pytest.raises(DistNetworkError):
        through.add("named", 1)
    assert proxy.done() == "add named: request lost"


def test_names_are_the_same_in_every_run() -> None:
    def named(*texts: str) -> str:
        data = b"".join(len(text).to_bytes(8, "little") + text for text in map(str.encode, texts))
        return name_of(Requests().feed(bytes([2 if len(texts) == 3 else 1]) + data)[0])

    me = Member(1, 2, "5abfa61d")
    before = genesis("0a1b2c3d")
    after = Record("0a1b2c3d", 1, "1-6200d3ca8b4e", False, False, me)
    assert named("/global_iteration_counter", str(before), str(after)) == "compare_set global_iteration_counter 0! 1"
    assert named("/global_iteration_counter", "", str(before)) == "compare_set global_iteration_counter - 0!"
    assert named("/" + keys.heartbeat(me), "7 1 3.5") == "set heartbeat_1.2-*"


def test_all_or_some_open_connections_are_cut_on_command(server: StoreServer) -> None:
    with Proxy(server.address) as plain:
        connections = [Connection(coxless.connect(plain.addresses[0])) for _ in range(3)]
        assert plain.cut(1, seed=1) == 1
        assert plain.cut_all(reset=True) >= 2
        for connection in connections:
            with pytest.raises(ConnectionBroken):
                connection.ping()
            connection.reconnect(time.monotonic() + 30)
            connection.ping()
        connections.clear()

"""A store that stops, or comes back empty: every call returns or raises in time, and nothing that was lost with it is relied on."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from torch.distributed import Store, TCPStore

import coxless
from coxless import Crew
from coxless.client import fresh_client
from coxless.connection import Connection
from coxless.errors import StoreUnreachableError
from coxless.protocol.operations import ConnectionBroken
from coxless.server import StoreServer, start_server
from coxless.store import _count_nothing

from .crews import crew_of, in_threads, stopped

pytestmark = pytest.mark.processes

LIMIT = timedelta(seconds=1)
MUCH_LATER = 8.0
"""A call that has no deadline of its own hangs for ever; one that has it may be late on a busy machine."""


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running
        os.kill(running.pid, signal.SIGCONT)


@pytest.fixture
def crew(server: StoreServer) -> Iterator[Crew]:
    """A crew of one, in its first iteration."""
    with crew_of(server.address, 0, 1, timeout=LIMIT) as crew:
        crew.advance()
        yield crew


CALLS: dict[str, Callable[[Crew], object]] = {
    "advance": lambda crew: crew.advance(),
    "get_global_iteration": lambda crew: crew.get_global_iteration(),
    "published": lambda crew: crew.published("word"),
    "trouble": lambda crew: crew.trouble(),
    "publish": lambda crew: crew.publish("word", "x"),
    "leave": lambda crew: crew.leave(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_stopped_store_holds_up_no_call(server: StoreServer, crew: Crew, call: str) -> None:
    stopped(server.pid)
    started = time.monotonic()
    if call in ("trouble", "publish", "leave"):
        CALLS[call](crew)
    else:
        with pytest.raises(StoreUnreachableError):
            CALLS[call](crew)
    assert time.monotonic() - started < MUCH_LATER


def test_joining_with_a_store_object_whose_server_is_stopped_is_an_error_in_time(server: StoreServer) -> None:
    store = coxless.connect(server.address)
    stopped(server.pid)
    started = time.monotonic()
    with pytest.raises(StoreUnreachableError, match=f"listens at {server.address} but does not answer as a store within 1 s"):
        coxless.join(store, rank=0, world_size=1, timeout=LIMIT)
    assert time.monotonic() - started < MUCH_LATER


def test_a_connection_whose_server_is_stopped_is_made_once_it_runs_again_and_not_many_times(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(coxless.connect(server.address))
    stopped(server.pid)
    connection.shut_down()
    attempts: list[Store] = []

    def counted(origin: Store) -> Store:
        attempts.append(origin)
        return fresh_client(origin)

    monkeypatch.setattr("coxless.connection.fresh_client", counted)
    for _ in range(5):
        with pytest.raises(StoreUnreachableError, match="accepts connections but does not answer"):
            connection.reconnect(time.monotonic() + 0.2)
    assert len(attempts) == 1, "it goes on; the next call takes it up"
    os.kill(server.pid, signal.SIGCONT)
    connection.reconnect(time.monotonic() + 30)
    assert connection.add("k", 1) == 1


def test_the_deadline_of_a_connection_ends_an_operation_before_the_limit_of_its_reply(server: StoreServer) -> None:
    connection = Connection(coxless.connect(server.address))
    stopped(server.pid)
    connection.deadline = started = time.monotonic()
    with pytest.raises(ConnectionBroken):
        connection.add("k", 1)
    assert time.monotonic() - started < 2.0, "2.6 s without a deadline"


@pytest.mark.skipif(not hasattr(TCPStore, "list_keys"), reason="this torch's TCPStore has no list_keys")
def test_a_store_that_hangs_while_it_lists_its_keys_does_not_stop_the_process(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch keeps the interpreter lock there, so no watchdog can end it."""
    connection = Connection(coxless.connect(server.address))
    monkeypatch.setattr(connection, "ping", lambda: stopped(server.pid))  # between its reply and the question
    resuming = subprocess.Popen(
        ["sh", "-c", f"sleep 20; kill -CONT {server.pid}"]
    )  # else a failure would be no failure but a hang
    started = time.monotonic()
    with pytest.raises(ConnectionBroken):
        connection.list_keys()
    assert time.monotonic() - started < 10
    assert connection.broken
    resuming.kill()
    resuming.wait()
    os.kill(server.pid, signal.SIGCONT)
    monkeypatch.undo()
    connection.reconnect(time.monotonic() + 30)
    connection.set("k", "1")
    assert "k" in connection.list_keys()


@pytest.mark.skipif(not hasattr(TCPStore, "queue_len"), reason="this torch's TCPStore has no queue_len")
def test_a_store_that_hangs_while_it_is_asked_what_it_is_is_not_refused(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[subprocess.Popen[bytes]] = []

    def asking(client: TCPStore) -> None:
        if not asked:
            stopped(server.pid)
            asked.append(subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {server.pid}"]))
        _count_nothing(client)

    monkeypatch.setattr("coxless.store._count_nothing", asking)
    store = coxless.connect(server.address, timeout=timedelta(seconds=30))
    assert store.add("k", 1) == 1
    assert asked[0].wait() == 0


class Closing(Connection):
    """Its own thread closes its socket whenever another has just looked whether there is one."""

    kept: socket.socket | None = None

    @property
    def _socket(self) -> socket.socket | None:
        found, self.kept = self.kept, None
        return found

    @_socket.setter
    def _socket(self, new: socket.socket | None) -> None:
        self.kept = new


def test_the_watchdog_survives_a_socket_that_is_closed_at_the_same_moment(server: StoreServer) -> None:
    """It died of it, once, with a thousand connections; then no call of that process would have ended in time any more."""
    connection = Closing(coxless.connect(server.address))
    assert connection.kept is not None
    connection.shut_down()
    assert connection.broken


def restarted(server: StoreServer) -> None:
    """Empty, on the same port."""
    server.kill()
    server.start()


def test_trouble_sees_again_after_the_store_came_back(server: StoreServer) -> None:
    """Rank 0 waits in a collective. The store is lost; then the step of rank 1 fails, which is all that can end the collective."""
    failed, ready = threading.Event(), threading.Barrier(2)

    def body(rank: int) -> tuple[int, bool, int]:
        with crew_of(server.address, rank, 2) as crew:
            crew.advance()
            crew.advance()
            ready.wait(60)
            if rank == 0:
                restarted(server)
                deadline = time.monotonic() + 60
                assert crew.trouble() is None
                failed.set()
                while (trouble := crew.trouble()) is None:
                    assert time.monotonic() < deadline, "it is blind"
                    time.sleep(0.05)
                assert trouble == "the step failed on rank 1"
            else:
                assert failed.wait(60)
            iteration = crew.advance(rank == 0)
            return iteration.number, iteration.committed, iteration.world_size

    assert in_threads(2, body) == [(3, False, 2)] * 2


def test_after_a_look_at_a_store_that_came_back_the_next_advance_recovers_first(server: StoreServer, crew: Crew) -> None:
    """The data may be lost, and with it somebody's failed vote: only the slow path, which asks everyone by name, may close."""
    number = crew.get_global_iteration()
    restarted(server)
    assert crew.get_global_iteration() == 0
    steps: list[str] = []
    crew._driver.watchers.append(lambda state, operation, reply: steps.append(operation.step))
    assert crew.advance().number == number + 1
    assert "arrive" not in steps
    assert steps[0] == "read_register"
    assert "restore_register" in steps


def test_what_was_published_is_put_back_when_the_store_has_lost_it(server: StoreServer) -> None:
    crew = crew_of(server.address, 0, 1)
    crew.advance()
    crew.publish("word", "x")
    deadline = time.monotonic() + 60
    for again in range(2):
        if again:
            restarted(server)
        while fresh_client(crew.store).compare_set("published:word", "?", "?") != b"x":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert crew.published("word") == "x"
    assert crew.published("other") is None
    crew.leave()


def test_what_is_published_last_is_there_after_leaving(server: StoreServer) -> None:
    with crew_of(server.address, 0, 1) as crew:
        crew.advance()
        crew.publish("word", "x")
    assert coxless.connect(server.address).get("published:word") == b"x"

"""A rank that lost its connection, and finds a new one, while the others are in the barrier."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from coxless.connection import Connection
from coxless.errors import CorruptStoreError
from coxless.server import StoreServer
from coxless.store import connect
from coxless.training.sealed import SealedStore

from .crews import crew_of, in_threads

pytestmark = pytest.mark.processes
PATIENCE = timedelta(seconds=0.5)


@pytest.mark.parametrize("held", ["1", None])
def test_a_look_at_the_count_lets_nobody_through(server: StoreServer, held: str | None) -> None:
    """`read` would: a compare_set, even one that changes nothing, releases whoever waits in the barrier of that key."""
    key = f"looked at: {held}"
    waiting, looking = Connection(connect(server.address)), Connection(connect(server.address))
    passed: list[bool] = []
    thread = threading.Thread(target=lambda: passed.append(waiting.barrier(key, 2, PATIENCE)))
    if held is not None:
        thread.start()
        deadline = time.monotonic() + 30
        while looking.peek(key) is None:
            assert time.monotonic() < deadline
    assert looking.peek(key) == held
    if held is not None:
        thread.join(30)
        assert passed == [False]
    for connection in (waiting, looking):
        connection.close()


def while_it_is_deleted(ask: Callable[[], bytes], other: Any, key: str) -> bytes:
    """What TCPStore's `get` says of a key that is deleted after it has waited for it and before it looks: a waiter that is woken although
    there is no key (by a compare_set that fails) comes to the same."""
    said: list[bytes] = []
    thread = threading.Thread(target=lambda: said.append(ask()))
    other.delete_key(key)
    thread.start()
    while thread.is_alive():
        other.compare_set(key, "something", "else")
    return said[0]


def test_a_count_that_is_deleted_during_the_look_is_missing_and_not_empty(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in a soak: a rank that had lost its connection, and was late, took the count that was just cleaned up for a foreign value."""
    looking, other = Connection(connect(server.address)), connect(server.address)
    other.set("the count", "2")
    get, said = looking.store.get, []

    def deleted_meanwhile(key: str) -> bytes:
        said.append(while_it_is_deleted(lambda: get(key), other, key))
        return said[-1]

    with monkeypatch.context() as patch:
        patch.setattr(type(looking.store), "get", lambda self, key: deleted_meanwhile(key))
        assert looking.peek("the count") is None
    assert said == [b""]
    other.set("the count", "")
    assert looking.peek("the count") == "", "that is a foreign value"
    looking.close()


def test_an_address_that_is_deleted_while_it_is_read_ends_the_meeting_and_not_the_training(server: StoreServer) -> None:
    ours, other = connect(server.address), connect(server.address)
    sealed = SealedStore(ours)
    caught: list[RuntimeError] = []

    def ask() -> bytes:
        try:
            return sealed.get("an address")
        except RuntimeError as error:
            caught.append(error)
            return b""

    while_it_is_deleted(ask, other, "an address")
    assert "was deleted" in str(caught[0])
    assert not isinstance(caught[0], CorruptStoreError)
    other.set("an address", "")
    with pytest.raises(CorruptStoreError):
        sealed.get("an address")


def test_a_failed_vote_is_not_outvoted_by_a_reconnection(server: StoreServer) -> None:
    """Rank 0 waits in the barrier; rank 1, whose step failed, loses its connection before it has said so. Nothing is committed (S8)."""
    committed: dict[int, bool] = {}

    def body(rank: int) -> None:
        with crew_of(server.address, rank, 2, patience=PATIENCE) as crew:
            first = crew.advance()
            if rank == 1:
                deadline = time.monotonic() + 30
                other = Connection(connect(server.address))
                while other.peek(f"global_iteration_barrier:{first.number}:count") != "1":
                    assert time.monotonic() < deadline
                crew._driver.connection.shut_down()
            second = crew.advance(rank == 0)
            assert second.number == first.number + 1
            committed[rank] = second.committed

    in_threads(2, body)
    assert committed == {0: False, 1: False}

"""A rank that lost its connection, and finds a new one, while the others are in the barrier."""

import threading
import time
from datetime import timedelta

import pytest

from coxless.connection import Connection
from coxless.server import StoreServer
from coxless.store import connect

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

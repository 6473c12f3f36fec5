"""A torch whose TCPStore has the barrier command, and one that has not, in one crew: refused at join, and safe where that comes too late."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import coxless
from coxless import Crew, connection, keys
from coxless.client import has_native_barrier
from coxless.connection import Connection
from coxless.errors import CorruptStoreError, UnfitStoreError

from ..conftest import needs_native_barrier
from .crews import crew_of, in_threads

SHORT, LONG = timedelta(milliseconds=50), timedelta(seconds=30)


@pytest.fixture
def with_old_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls something as it would go with a torch that has no barrier command: on this thread, for the time of the call."""
    old = threading.local()
    monkeypatch.setattr(
        connection, "has_native_barrier", lambda store: has_native_barrier(store) and not getattr(old, "torch", False)
    )

    def call(action: Callable[[], Any]) -> Any:
        old.torch = True
        try:
            return action()
        finally:
            old.torch = False

    return call


@needs_native_barrier
def test_the_two_kinds_count_apart(address: str, with_old_torch: Callable[[Callable[[], Connection]], Connection]) -> None:
    """On one key, the add of the one that does without would let the other through, with the third still missing."""
    store = coxless.connect(address)
    new, newer = Connection(store), Connection(store)
    old, older = (with_old_torch(lambda: Connection(store)) for _ in range(2))
    through: list[bool] = []
    waiting = threading.Thread(target=lambda: through.append(new.barrier(keys.count(1), 3, timedelta(seconds=1))))
    waiting.start()
    while not newer.store.check([keys.count(1)]):  # over another connection: that one is blocked
        pass
    assert not old.barrier(keys.count(1), 3, SHORT)
    waiting.join()
    assert through == [False]
    assert not older.barrier(keys.count(1), 3, SHORT), "the second of its kind"
    assert not newer.barrier(keys.count(1), 3, SHORT), "the second of its kind, the fourth in all"
    for one in (new, newer, old, older):
        one.close()


@needs_native_barrier
@pytest.mark.parametrize("first", ["old", "new"])
def test_who_meets_in_another_way_than_the_crew_is_refused(
    address: str, with_old_torch: Callable[[Callable[[], Crew]], Crew], first: str
) -> None:
    def old() -> Crew:
        return with_old_torch(lambda: crew_of(address, 0, 2))

    def new() -> Crew:
        return crew_of(address, 1, 2)

    here, refused = (old, new) if first == "old" else (new, old)
    how = "meet without TCPStore's barrier command" if first == "old" else "meet by TCPStore's barrier command"
    with here():
        for _ in range(2):
            with pytest.raises(UnfitStoreError, match=f"{how}.*use one version of torch"):
                refused()


@needs_native_barrier
def test_a_crew_of_both_kinds_is_slow_and_loses_no_vote(
    address: str, with_old_torch: Callable[[Callable[[], Crew]], Crew]
) -> None:
    """As it could come to be where the store has lost its data. Nobody hears the other kind arrive, so all have to sign."""
    store = coxless.connect(address)

    def join(rank: int) -> Crew:
        return crew_of(address, rank, 3, patience=SHORT)

    crews = []
    for rank in range(3):
        crews.append(with_old_torch(lambda: join(2)) if rank == 2 else join(rank))
        store.delete_key(keys.BARRIER_KIND)

    def run(rank: int) -> list[tuple[int, tuple[coxless.Member, ...], bool]]:
        crew = crews[rank]
        seen = []
        for k in range(8):
            iteration = crew.advance(ok=rank != k % 4)
            seen.append((iteration.number, iteration.participants, iteration.committed))
        return seen

    results = in_threads(3, run)
    assert results[0] == results[1] == results[2]
    decided: Any = results[0]
    assert [number for number, _, _ in decided] == list(range(1, 9))
    assert [committed for _, _, committed in decided[1:]] == [k % 4 == 3 for k in range(1, 8)]
    assert {participants for _, participants, _ in decided} == {tuple(crew.member for crew in crews)}
    for crew in crews:
        crew.leave()


def test_a_store_that_lost_its_data_is_told_again(address: str) -> None:
    store = coxless.connect(address)
    with crew_of(address, 0, 1) as crew:
        crew.advance()
        kind = store.get(keys.BARRIER_KIND)
        assert kind.decode() == crew._driver.connection.barrier_kind
        store.delete_key(keys.BARRIER_KIND)
        crew._housekeeper._connection.shut_down()
        store.wait([keys.BARRIER_KIND], LONG)
        assert store.get(keys.BARRIER_KIND) == kind


def test_a_foreign_word_there_is_named(address: str) -> None:
    coxless.connect(address).set(keys.BARRIER_KIND, "revolving door")
    with pytest.raises(CorruptStoreError, match="revolving door"):
        crew_of(address, 0, 1)

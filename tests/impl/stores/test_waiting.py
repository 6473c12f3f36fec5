"""Waiting on every store that is supported: what wakes, when a wait ends, and the barrier. The other rows of docs/stores.md: test_behaviour.py."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, DistStoreError, FileStore, HashStore, Store

from coxless.connection import Connection

from .waits import LONG, PROBE, SOON, late, runs_out

# -- waiting


CREATES: dict[str, Callable[[Store], object]] = {
    "set": lambda store: store.set("k", "1"),
    "add": lambda store: store.add("k", 1),
    "append": lambda store: store.append("k", "1"),
    "compare_set": lambda store: store.compare_set("k", "", "1"),
    "multi_set": lambda store: store.multi_set(["k"], ["1"]),
}


@pytest.mark.parametrize("action", CREATES)
def test_every_operation_that_creates_a_key_wakes_its_waiters(store: Store, action: str) -> None:
    # The exception: HashStore's add wakes nobody, who waits looks again when his time is over. The protocol waits for keys that are set.
    sleeps_on = isinstance(store, HashStore) and action == "add"
    waiter = store.clone()
    began = time.monotonic()
    with late(lambda: CREATES[action](store)):
        waiter.wait(["k"], timedelta(seconds=1) if sleeps_on else LONG)
    assert (time.monotonic() - began > 0.9) if sleeps_on else (time.monotonic() - began < 10)


def test_a_get_is_woken_as_a_wait_is(store: Store) -> None:
    reader = store.clone()
    with late(lambda: store.set("k", "1")):
        assert reader.get("k") == b"1"


def test_a_wait_for_what_is_there_returns_at_once_whatever_its_time(full: Store) -> None:
    full.set("k", "")
    full.wait([], SOON)
    full.wait(["k"], SOON)
    full.wait(["k"], timedelta(seconds=-1))


def test_a_wait_for_several_keys_ends_with_the_last(store: Store) -> None:
    store.set("b", "1")
    waiter = store.clone()

    def set_both() -> None:
        store.set("c", "1")
        assert not ended.is_set()
        store.set("a", "1")

    ended = threading.Event()
    with late(set_both):
        waiter.wait(["a", "b", "c"], LONG)
        ended.set()


def test_one_set_wakes_all_that_wait(full: Store) -> None:
    woken = []

    def wait() -> None:
        mine = full.clone()
        mine.wait(["k"], LONG)
        woken.append(1)

    threads = [threading.Thread(target=wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    with late(lambda: full.set("k", "1")):
        for thread in threads:
            thread.join(30)
    assert len(woken) == 20


def test_a_key_that_was_seen_counts_even_if_it_is_deleted_before_the_last_comes(full: Store) -> None:
    full.set("a", "1")
    waiter = full.clone()

    def delete_then_set() -> None:
        full.delete_key("a")
        full.set("b", "1")

    with late(delete_then_set):
        waiter.wait(["a", "b"], LONG)


@pytest.mark.parametrize("milliseconds", [1, 20, 250])
def test_a_wait_ends_on_time_and_says_that_it_timed_out(store: Store, milliseconds: int) -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        store.wait(["missing"], timedelta(milliseconds=milliseconds))
    assert runs_out(caught.value)
    late_by = time.monotonic() - began - milliseconds / 1000
    assert -0.02 <= late_by < (1.5 if isinstance(store, FileStore) else 0.5)  # FileStore looks once a second


def test_no_time_at_all_is_a_look(full: Store) -> None:
    """HashStore and FileStore take 0 for "for ever"."""
    with pytest.raises(DistStoreError):
        full.wait(["missing"], timedelta(0))


@pytest.mark.parametrize("ask", [lambda s: s.get("missing"), lambda s: s.multi_get(["missing"]), lambda s: s.wait(["missing"])])
def test_without_a_time_of_its_own_an_operation_has_that_of_the_store(full: Store, ask: Callable[[Store], object]) -> None:
    full.set_timeout(timedelta(milliseconds=100))
    assert full.timeout == timedelta(milliseconds=100)
    began = time.monotonic()
    with pytest.raises(DistStoreError, match="timeout"):
        ask(full)
    assert 0.08 < time.monotonic() - began < 0.6


def test_a_timeout_leaves_the_store_usable(store: Store) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError):
            store.wait(["missing"], SOON)
        assert store.add("n", 0) == 0


def test_the_two_kinds_of_error_are_told_apart() -> None:
    assert issubclass(DistStoreError, RuntimeError)
    assert issubclass(DistNetworkError, RuntimeError)
    assert not issubclass(DistStoreError, DistNetworkError)


# -- the barrier: of the crew's connection on every store, whether it is one operation there or several


def test_the_crews_barrier_lets_all_through_and_counts_who_ran_out_of_time(store: Store) -> None:
    first, second = Connection(store), Connection(store)
    assert not first.barrier("b:count", 2, timedelta(milliseconds=20))
    assert second.barrier("b:count", 2, timedelta(seconds=20))
    assert first.read(first.parts_of("b:count")[0]) == "2"
    third = Connection(store)
    through: list[bool] = []
    thread = threading.Thread(target=lambda: through.append(third.barrier("c:count", 2, timedelta(seconds=20))))
    thread.start()
    assert first.barrier("c:count", 2, timedelta(seconds=20))
    thread.join(30)
    assert through == [True]
    first.delete("b:count")
    assert not first.barrier("b:count", 2, timedelta(milliseconds=20))
    for connection in (first, second, third):
        connection.close()


# -- the barrier that is one operation


def test_the_barrier_lets_all_through_when_the_last_has_come(barring: Store) -> None:
    through: list[int] = []

    def come(me: int) -> None:
        barring.clone().barrier("b", 8, LONG)
        through.append(me)

    threads = [threading.Thread(target=come, args=(me,)) for me in range(7)]
    for thread in threads:
        thread.start()
    with pytest.raises(DistStoreError):
        barring.wait(["never"], timedelta(milliseconds=200))
    assert not through
    come(7)
    for thread in threads:
        thread.join(30)
    assert sorted(through) == list(range(8))
    barring.barrier("b", 8, SOON)  # for one use: from now on open to anyone


def test_who_ran_out_of_time_at_the_barrier_stays_counted(barring: Store) -> None:
    with pytest.raises(DistStoreError, match="barrier timeout"):
        barring.barrier("b", 2, timedelta(milliseconds=1))
    barring.clone().barrier("b", 2, LONG)


def test_the_barriers_key_holds_the_number_of_those_who_came(barring: Store) -> None:
    for come in range(1, 4):
        with pytest.raises(DistStoreError):
            barring.barrier("b", 9, timedelta(milliseconds=1))
        assert barring.compare_set("b", PROBE, PROBE) == str(come).encode()


def test_a_barrier_whose_key_was_deleted_begins_anew(barring: Store) -> None:
    barring.barrier("b", 1, LONG)
    assert barring.delete_key("b")
    with pytest.raises(DistStoreError):
        barring.barrier("b", 2, SOON)


@pytest.mark.parametrize("size", [1, 0, -1])
def test_a_barrier_of_one_or_none_is_open(barring: Store, size: int) -> None:
    barring.barrier("b", size, SOON)

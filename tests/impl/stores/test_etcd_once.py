"""A write whose reply is lost takes effect once, whatever becomes of each attempt; played out on a real etcd, attempt by attempt.

`Cluster.once` is the one way out to etcd. Here it loses replies, loses requests, or lets them arrive only after the caller was answered.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import DistNetworkError, DistStoreError

from coxless.stores.etcd import EtcdStore
from coxless.stores.etcd_cluster import TXN, Cluster, Deadline, Unanswered

from ...conftest import NewRun

REPLY, REQUEST, LATE = "the reply is lost", "the request is lost", "the request arrives late"


class Wire:
    """What happens to the attempts to come, one after the other; after them nothing does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[str] = []
        self.attempts = 0
        self._late: list[Callable[[], object]] = []
        once = Cluster.once

        def faulty(cluster: Cluster, method: Any, request: Any, deadline: Any) -> Any:
            if method is not TXN or not self.faults:
                self.attempts += 1
                return once(cluster, method, request, deadline)
            self.attempts += 1
            fault = self.faults.pop(0)
            if fault == REPLY:
                once(cluster, method, request, deadline)
            elif fault == LATE:
                self._late.append(lambda: once(cluster, method, request, Deadline(timedelta(seconds=10))))
            raise Unanswered(fault)

        monkeypatch.setattr(Cluster, "once", faulty)

    def deliver(self) -> None:
        """What was late arrives now."""
        while self._late:
            self._late.pop(0)()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


@pytest.fixture
def store(new_run: NewRun) -> Iterator[EtcdStore]:
    made = EtcdStore(new_run(), timedelta(seconds=20))
    yield made
    made.close()


FAULTS = {
    "a reply": [REPLY],
    "a request": [REQUEST],
    "a late request": [LATE],
    "two replies": [REPLY, REPLY],
    "two late requests": [LATE, LATE],
    "a late request, then a reply": [LATE, REPLY],
    "a request, then a reply, then a late request": [REQUEST, REPLY, LATE],
}
each_fault = pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)


@each_fault
def test_add_counts_once(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    store.set("n", "10")
    wire.faults = list(faults)
    assert store.add("n", 1) == 11
    wire.deliver()
    assert store.add("n", 0) == 11


@each_fault
def test_append_appends_once(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    wire.faults = list(faults)
    store.append("k", "me,")
    wire.deliver()
    assert store.get("k") == b"me,"


@each_fault
def test_a_set_does_not_come_back_over_a_later_one(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    wire.faults = list(faults)
    store.set("k", "first")
    store.clone().set("k", "second")
    wire.deliver()
    assert store.get("k") == b"second"


def test_a_set_is_not_done_again_when_another_has_overwritten_it_meanwhile(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to ours is lost, theirs follows, ours is asked for again."""
    once, lost = Cluster.once, []

    def and_theirs(cluster: Cluster, method: Any, request: Any, deadline: Any) -> Any:
        answer = once(cluster, method, request, deadline)
        if method is TXN and not lost:
            lost.append(answer)
            store.clone().set("k", "theirs")
            raise Unanswered(REPLY)
        return answer

    monkeypatch.setattr(Cluster, "once", and_theirs)
    store.set("k", "ours")
    assert lost
    assert store.get("k") == b"theirs"


@each_fault
def test_compare_set_knows_whether_it_won(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    store.set("k", "old")
    wire.faults = list(faults)
    assert store.compare_set("k", "old", "new") == b"new"
    store.set("k", "old")
    wire.deliver()
    assert store.get("k") == b"old"  # a late attempt finds the value that it expects, and is too late all the same


@each_fault
def test_compare_set_knows_that_it_lost(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    store.set("k", "other")
    wire.faults = list(faults)
    assert store.compare_set("k", "old", "new") == b"other"
    store.set("k", "old")
    wire.deliver()
    assert store.get("k") == b"old"


@each_fault
def test_compare_set_creates_once(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    wire.faults = list(faults)
    assert store.compare_set("k", "", "new") == b"new"
    store.delete_key("k")
    wire.deliver()
    assert not store.check(["k"])


@each_fault
def test_a_barrier_counts_once(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    wire.faults = list(faults)
    with pytest.raises(DistStoreError):
        store.barrier("b", 2, timedelta(milliseconds=500))
    wire.deliver()
    assert store.get("b") == b"1"
    wire.faults = list(faults)
    store.barrier("b", 2, timedelta(seconds=20))
    wire.deliver()
    assert store.get("b") == b"2"


@each_fault
def test_delete_knows_whether_there_was_something(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    store.set("k", "1")
    wire.faults = list(faults)
    assert store.delete_key("k")
    store.set("k", "2")
    wire.deliver()
    assert store.get("k") == b"2"
    wire.faults = list(faults)
    assert not store.delete_key("missing")


@each_fault
def test_many_keys_are_set_once(store: EtcdStore, wire: Wire, faults: list[str]) -> None:
    names = [f"k{n}" for n in range(120)]
    wire.faults = list(faults)
    store.multi_set(names, ["1"] * 120)
    store.multi_set(names, ["2"] * 120)
    wire.deliver()
    assert store.multi_get(names) == [b"2"] * 120


def test_reads_are_just_asked_again(store: EtcdStore, wire: Wire) -> None:
    store.set("k", "1")
    for ask in (lambda: store.get("k"), lambda: store.check(["k"]), lambda: store.list_keys(), lambda: store.wait(["k"])):
        wire.faults = [REQUEST, REPLY]
        ask()
        assert not wire.faults


def test_a_write_that_was_given_up_may_take_effect_late_and_harms_no_other(store: EtcdStore, wire: Wire) -> None:
    """After DistNetworkError nobody knows; but the next writes of this client are not mistaken for it, nor undone by it."""
    store.set_timeout(timedelta(seconds=0.3))
    wire.faults = [LATE] * 100
    with pytest.raises(DistNetworkError, match=r"no member of .* answered within 0.5 s: "):
        store.append("k", "late,")
    wire.faults = []
    wire.deliver()  # it takes effect now, once for all its attempts
    store.append("k", "next,")
    assert store.get("k") == b"late,next,"
    wire.faults = [LATE] * 100
    with pytest.raises(DistNetworkError):
        store.set("k", "late")
    wire.faults = []
    store.set("k", "after it")
    wire.deliver()  # too late
    assert store.get("k") == b"after it"


def test_without_a_fault_a_write_is_one_transaction(store: EtcdStore, wire: Wire) -> None:
    store.set("warm", "")
    for action, number in (
        (lambda: store.set("k", "1"), 1),
        (lambda: store.append("k", "2"), 1),
        (lambda: store.compare_set("r", "", "a"), 1),
        (lambda: store.compare_set("r", "a", "b"), 1),
        (lambda: store.compare_set("r", "no", "c"), 1),
        (lambda: store.compare_set("r", "?", "?"), 1),
        (lambda: store.barrier("b", 1, timedelta(seconds=1)), 1),
        (lambda: store.add("n", 1), 1),
        (lambda: store.add("n", 1), 2),  # what it adds to has to be read
        (lambda: store.delete_key("k"), 1),
        (lambda: store.get("r"), 1),
    ):
        before = wire.attempts
        action()
        assert wire.attempts - before == number

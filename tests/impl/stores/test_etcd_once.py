"""A write whose reply is lost takes effect once, whatever becomes of each attempt; played out on a real etcd, attempt by attempt.

`Cluster.once` is the one way out to etcd. Here it loses replies, loses requests, or lets them arrive only after the caller was answered.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import DistNetworkError, DistStoreError

from coxless.stores import etcd_waiting
from coxless.stores.etcd import EtcdStore
from coxless.stores.etcd_barrier import Expectation
from coxless.stores.etcd_cluster import TXN, Cluster, Deadline, Unanswered

from ...conftest import NewRun
from .clients import as_another_process

REPLY, REQUEST, LATE = "the reply is lost", "the request is lost", "the request arrives late"


class Wire:
    """What happens to the attempts to come, one after the other; after them nothing does.

    Those of this thread: a session renews its lease in a thread of its own, at any moment.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[str] = []
        self.attempts = self.unanswered = 0
        self._late: list[Callable[[], object]] = []
        once, caller = Cluster.once, threading.get_ident()

        def faulty(cluster: Cluster, method: Any, request: Any, deadline: Any) -> Any:
            if threading.get_ident() != caller:
                return once(cluster, method, request, deadline)
            if method is not TXN or not self.faults:
                self.attempts += 1
                try:
                    return once(cluster, method, request, deadline)
                except Unanswered:
                    self.unanswered += 1
                    raise
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


@pytest.fixture
def other(store: EtcdStore) -> Iterator[EtcdStore]:
    """A client of the same run in another process, as far as etcd can tell."""
    made = as_another_process(store.etcd)
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
def test_a_set_does_not_come_back_over_a_later_one(store: EtcdStore, other: EtcdStore, wire: Wire, faults: list[str]) -> None:
    wire.faults = list(faults)
    store.set("k", "first")
    other.set("k", "second")
    wire.deliver()
    assert store.get("k") == b"second"


def test_a_set_is_not_done_again_when_another_has_overwritten_it_meanwhile(
    store: EtcdStore, other: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to ours is lost, theirs follows, ours is asked for again."""
    once = Cluster.once
    lost: list[Any] = []

    def and_theirs(cluster: Cluster, method: Any, request: Any, deadline: Any) -> Any:
        answer = once(cluster, method, request, deadline)
        if method is TXN and not lost:
            lost.append(answer)
            other.set("k", "theirs")
            raise Unanswered(REPLY)
        return answer

    monkeypatch.setattr(Cluster, "once", and_theirs)
    store.set("k", "ours")
    assert lost
    assert store.get("k") == b"theirs"


@each_fault
def test_compare_set_knows_whether_it_won(store: EtcdStore, other: EtcdStore, wire: Wire, faults: list[str]) -> None:
    store.set("k", "old")
    wire.faults = list(faults)
    assert store.compare_set("k", "old", "new") == b"new"
    other.set("k", "old")
    wire.deliver()
    assert store.get("k") == b"old"  # a late attempt finds the value that it expects, and is too late all the same


@each_fault
def test_compare_set_knows_that_it_lost(store: EtcdStore, other: EtcdStore, wire: Wire, faults: list[str]) -> None:
    store.set("k", "other")
    wire.faults = list(faults)
    assert store.compare_set("k", "old", "new") == b"other"
    other.set("k", "old")
    wire.deliver()
    assert store.get("k") == b"old"


@each_fault
def test_compare_set_creates_once(store: EtcdStore, other: EtcdStore, wire: Wire, faults: list[str]) -> None:
    wire.faults = list(faults)
    assert store.compare_set("k", "", "new") == b"new"
    other.delete_key("k")
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
def test_delete_knows_whether_there_was_something(store: EtcdStore, other: EtcdStore, wire: Wire, faults: list[str]) -> None:
    store.set("k", "1")
    wire.faults = list(faults)
    assert store.delete_key("k")
    other.set("k", "2")
    wire.deliver()
    assert store.get("k") == b"2"
    wire.faults = list(faults)
    assert not store.delete_key("missing")


@each_fault
def test_many_keys_are_set_once(store: EtcdStore, other: EtcdStore, wire: Wire, faults: list[str]) -> None:
    names = [f"k{n}" for n in range(120)]
    wire.faults = list(faults)
    store.multi_set(names, ["1"] * 120)
    other.multi_set(names, ["2"] * 120)
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
    for k in ("k", "l", "m", "n"):  # anew where the server itself was too slow to answer an attempt: it happens on a busy machine
        wire.unanswered = 0
        counted = []
        for action in (
            lambda k=k: store.set(f"{k}/k", "1"),
            lambda k=k: store.append(f"{k}/k", "2"),
            lambda k=k: store.compare_set(f"{k}/r", "", "a"),
            lambda k=k: store.compare_set(f"{k}/r", "a", "b"),
            lambda k=k: store.compare_set(f"{k}/r", "no", "c"),
            lambda k=k: store.compare_set(f"{k}/r", "?", "?"),
            lambda k=k: store.barrier(f"{k}/b", 1, timedelta(seconds=1)),
            lambda k=k: store.add(f"{k}/n", 1),
            lambda k=k: store.add(f"{k}/n", 1),  # two: what it adds to has to be read
            lambda k=k: store.delete_key(f"{k}/k"),
            lambda k=k: store.get(f"{k}/r"),
        ):
            before = wire.attempts
            action()
            counted.append(wire.attempts - before)
        if not wire.unanswered:
            break
    assert not wire.unanswered, "the server was too slow each time"
    assert counted == [1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1]


# -- what others do between the transactions of one operation


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has the action done once, right after the next transaction has been answered."""

    def arrange(action: Callable[[], object]) -> None:
        once, actions = Cluster.once, [action]

        def and_then(cluster: Cluster, method: Any, request: Any, deadline: Any) -> Any:
            answer = once(cluster, method, request, deadline)
            if method is TXN and actions:
                actions.pop()()
            return answer

        monkeypatch.setattr(Cluster, "once", and_then)

    return arrange


Between = Callable[[Callable[[], object]], None]


@pytest.mark.parametrize(
    ("action", "sum_"),
    [
        (lambda other: other.add("n", 10), 111),
        (lambda other: other.append("n", "0"), 1001),
        (lambda other: other.set("n", "100"), 101),
        (lambda other: other.delete_key("n"), 1),
    ],
    ids=["add", "append", "set", "delete"],
)
def test_add_adds_to_what_is_there_when_it_writes(
    store: EtcdStore, other: EtcdStore, between: Between, action: Callable[[EtcdStore], object], sum_: int
) -> None:
    store.set("n", "100")
    between(lambda: action(other))
    assert store.add("n", 1) == sum_
    assert store.get("n") == str(sum_).encode()


@pytest.mark.parametrize(
    ("action", "returned", "after"),
    [
        (lambda other: other.append("k", "c,"), b"a,b,c,", b"a,b,c,"),
        (lambda other: other.set("k", "new"), b"new", b"new"),
        (lambda other: other.set("k", "a,b,"), b"mine", b"mine"),
        (lambda other: other.delete_key("k"), b"a,b,", None),
        (lambda other: (other.delete_key("k"), other.append("k", "a,"), other.append("k", "b,")), b"mine", b"mine"),
    ],
    ids=["append", "set", "set to the same", "delete", "delete and write it again"],
)
def test_compare_set_of_what_was_appended_compares_what_is_there_when_it_writes(
    store: EtcdStore,
    other: EtcdStore,
    between: Between,
    action: Callable[[EtcdStore], object],
    returned: bytes,
    after: bytes | None,
) -> None:
    store.append("k", "a,")
    store.append("k", "b,")
    between(lambda: action(other))
    assert store.compare_set("k", "a,b,", "mine") == returned
    assert store.check(["k"]) == (after is not None)
    if after is not None:
        assert store.get("k") == after


@pytest.mark.parametrize("wait", ["wait", "get"])
def test_what_comes_between_the_look_and_the_watch_is_not_missed(
    store: EtcdStore, other: EtcdStore, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    """Here: before the watch is even asked for. A waiter that missed it would look again only after a while."""
    watch = etcd_waiting.Watch
    came: list[str] = []

    def comes_first(*arguments: Any) -> etcd_waiting.Watch:
        if not came:
            other.set("k", "1")
            came.append("k")
        return watch(*arguments)

    monkeypatch.setattr(etcd_waiting, "Watch", comes_first)
    waits: dict[str, Callable[[], object]] = {"wait": lambda: store.wait(["k"]), "get": lambda: store.get("k")}
    began = time.monotonic()
    waits[wait]()
    assert came
    assert time.monotonic() - began < etcd_waiting.SLICE - 0.5


# -- the watch that barriers share


def meet(store: EtcdStore, other: EtcdStore, key: str) -> float:
    """How long the first one waited at the barrier after the second had come."""
    came: list[float] = []

    def come() -> None:
        other.barrier(key, 2, timedelta(seconds=20))
        came.append(time.monotonic())

    timer = threading.Timer(0.3, come)
    timer.start()
    store.barrier(key, 2, timedelta(seconds=20))
    through = time.monotonic()
    timer.join()
    return through - came[0]


def test_an_opening_is_told_at_once(store: EtcdStore, other: EtcdStore) -> None:
    store.barrier("first", 1)
    assert statistics.median(meet(store, other, f"b{turn}") for turn in range(5)) < 0.05


@pytest.mark.parametrize("covered", [False, True], ids=["it is not there", "it says nothing"])
def test_a_barrier_does_not_depend_on_the_watch(
    store: EtcdStore, other: EtcdStore, monkeypatch: pytest.MonkeyPatch, covered: bool
) -> None:
    store.barrier("first", 1)
    openings = store._session.openings
    if covered:  # as that of a member which has stopped
        until = time.monotonic() + 30
        while not openings._since:  # it has yet to hear from where on it misses nothing
            assert time.monotonic() < until
            time.sleep(0.01)
        monkeypatch.setattr(Expectation, "opened", lambda *_: None)
    else:
        monkeypatch.setattr(openings, "_watch", None)
        monkeypatch.setattr(openings, "_since", 0)
        monkeypatch.setattr(openings, "_begin", lambda deadline: None)
    assert meet(store, other, "b") < etcd_waiting.SLICE + 0.5
    if covered:
        assert openings._watch is None  # it is not believed again
        monkeypatch.undo()
        store.barrier("second", 1)
        assert meet(store, other, "c") < 1


def test_a_watch_that_breaks_while_somebody_waits_is_replaced(store: EtcdStore, other: EtcdStore) -> None:
    store.barrier("first", 1)
    openings = store._session.openings
    threading.Timer(0.15, openings.distrust).start()
    assert meet(store, other, "b") < 1
    assert openings._watch is None
    assert meet(store, other, "c") < 1
    assert openings._watch is not None


def test_an_opening_of_before_the_key_was_deleted_is_none(store: EtcdStore, other: EtcdStore) -> None:
    for _ in range(3):
        meet(store, other, "b")
        store.delete_key("b")
        with pytest.raises(DistStoreError):
            store.barrier("b", 2, timedelta(milliseconds=50))
        store.delete_key("b")

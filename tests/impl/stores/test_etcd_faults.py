"""Three real members of etcd: killed, stopped, out of quorum. Clients go on with the others, or get one clear error in time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, DistStoreError, Store

from coxless.errors import StoreUnreachableError
from coxless.store import connect
from coxless.stores.etcd import EtcdStore
from coxless.stores.local_etcd import LocalEtcd

pytestmark = pytest.mark.processes

LONG = timedelta(seconds=60)
SLACK = 0.5
GRACE = timedelta(seconds=0.5)  # what a call has at least


@pytest.fixture
def store(etcd3: LocalEtcd) -> Iterator[EtcdStore]:
    made = EtcdStore(etcd3.address("run"), LONG)
    yield made
    made.close()


class Writers:
    """Clients that count and sign as fast as they can, until they are stopped; every call has to succeed."""

    def __init__(self, store: Store, clients: int = 3) -> None:
        self.numbers: list[int] = []
        self.signed: list[list[str]] = [[] for _ in range(clients)]
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(me, store.clone())) for me in range(clients)]

    def _run(self, me: int, store: Store) -> None:
        try:
            while not self._stop.is_set():
                self.numbers.append(store.add("n", 1))
                name = f"{me}.{len(self.signed[me])},"
                store.append("log", name)
                self.signed[me].append(name)
        except RuntimeError as error:
            self.errors.append(error)

    def progress(self) -> int:
        return len(self.numbers)

    def await_progress(self, more: int = 30) -> None:
        """Return once so many more numbers have been given out."""
        target, deadline = self.progress() + more, time.monotonic() + 60
        while self.progress() < target and not self.errors:
            assert time.monotonic() < deadline, "nobody gets on"
            time.sleep(0.02)

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        self.await_progress()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def check(self, store: Store) -> None:
        """Each number once, each signature once and in order: whatever was repeated took effect once."""
        assert self.errors == []
        assert sorted(self.numbers) == list(range(1, len(self.numbers) + 1))
        assert store.add("n", 0) == len(self.numbers)
        log = [part + "," for part in store.get("log").decode().split(",")[:-1]]
        for me, signed in enumerate(self.signed):
            assert [part for part in log if part.startswith(f"{me}.")] == signed


def test_kill_9_of_the_leader(etcd3: LocalEtcd, store: EtcdStore) -> None:
    with Writers(store) as writers:
        for _ in range(2):
            leader = etcd3.await_leader()
            etcd3.kill(leader)
            writers.await_progress()
            etcd3.start_member(leader)
            etcd3.await_leader()
    writers.check(store)


def test_kill_9_of_any_other_member(etcd3: LocalEtcd, store: EtcdStore) -> None:
    with Writers(store) as writers:
        for _ in range(3):
            number = (etcd3.await_leader() + 1) % 3
            etcd3.kill(number)
            writers.await_progress()
            etcd3.start_member(number)
            writers.await_progress()
    writers.check(store)


def test_a_leader_that_is_stopped_and_resumed(etcd3: LocalEtcd, store: EtcdStore) -> None:
    """What it had in its sockets when it was stopped, it does when it is resumed; by then it has been done elsewhere."""
    with Writers(store) as writers:
        for _ in range(2):
            leader = etcd3.await_leader()
            etcd3.pause(leader)
            writers.await_progress()
            etcd3.resume(leader)
            writers.await_progress()
    writers.check(store)


CALLS: dict[str, Callable[[Store, timedelta], object]] = {
    "get": lambda store, limit: store.get("k"),
    "set": lambda store, limit: store.set("k", "2"),
    "add": lambda store, limit: store.add("n", 1),
    "append": lambda store, limit: store.append("a", "2"),
    "compare_set": lambda store, limit: store.compare_set("k", "1", "2"),
    "check": lambda store, limit: store.check(["k"]),
    "delete_key": lambda store, limit: store.delete_key("d"),
    "multi_get": lambda store, limit: store.multi_get(["k"]),
    "multi_set": lambda store, limit: store.multi_set(["x", "y"], ["1", "2"]),
    "list_keys": lambda store, limit: store.list_keys(),
    "wait": lambda store, limit: store.wait(["missing"], limit),
    "barrier": lambda store, limit: store.barrier("b", 2, limit),
}


@contextmanager
def within(limit: timedelta) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit.total_seconds() + SLACK


def test_two_of_three_gone_is_an_error_in_time_and_back_again_it_goes_on(etcd3: LocalEtcd, store: EtcdStore) -> None:
    store.set("k", "1")
    leader = etcd3.await_leader()
    gone = [leader, (leader + 1) % 3]
    for number in gone:
        etcd3.kill(number)
    for seconds, names in ((0.25, list(CALLS)), (2, ["get", "compare_set", "barrier"])):
        limit = timedelta(seconds=seconds)
        store.set_timeout(limit)
        for name in names:
            with within(max(limit, GRACE)), pytest.raises(DistNetworkError, match=r"no member of etcd://.* answered within"):
                CALLS[name](store, limit)
    with pytest.raises(StoreUnreachableError, match="no member of etcd://"):
        connect(etcd3.address("other"), timeout=timedelta(seconds=1))
    for number in gone:
        etcd3.start_member(number)
    store.set_timeout(LONG)
    assert store.get("k") in (b"1", b"2")  # the writes that failed may have been done, late
    store.set("k", "3")
    assert store.get("k") == b"3"
    assert store.add("m", 1) == 1


def test_with_all_members_stopped_every_call_ends_in_time(etcd3: LocalEtcd, store: EtcdStore) -> None:
    """A stopped process accepts what its kernel accepts for it: only time tells."""
    store.set("k", "1")
    limit = timedelta(seconds=0.7)
    store.set_timeout(limit)
    for number in range(3):
        etcd3.pause(number)
    try:
        for call in CALLS.values():
            with within(limit), pytest.raises(DistNetworkError):
                call(store, limit)
    finally:
        for number in range(3):
            etcd3.resume(number)
    store.set_timeout(LONG)
    assert store.add("m", 1) == 1


def test_with_one_member_stopped_no_call_fails(etcd3: LocalEtcd, store: EtcdStore) -> None:
    """Whichever one: a call that hangs there is asked of another in time."""
    store.set("k", "1")
    for number in range(3):
        if number == etcd3.await_leader():
            continue
        etcd3.pause(number)
        store._session.cluster.current = number
        store.set_timeout(timedelta(seconds=3))
        assert store.add("n", 1)
        assert store.get("k") == b"1"
        with pytest.raises(DistStoreError):  # it is missing, says one that answers
            store.wait(["missing"], timedelta(seconds=3))
        etcd3.resume(number)


def test_a_member_that_is_cut_off_from_the_others_is_left_at_once(etcd: LocalEtcd, etcd3: LocalEtcd) -> None:
    """It lives and answers, but has no leader: what is left of another cluster is just that."""
    etcd3.kill(1)
    etcd3.kill(2)
    while int((etcd3._status(0) or {}).get("leader", 0)):  # until it has noticed
        time.sleep(0.05)
    with_others = etcd.address("cut-off").removeprefix("etcd://")
    store = EtcdStore(f"etcd://127.0.0.1:{etcd3.ports[0]},{with_others}", timedelta(seconds=20))
    calls: list[Callable[[], object]] = [
        lambda: store.set("k", "1"),
        lambda: store.get("k"),
        lambda: store.barrier("b", 1, LONG),
        lambda: store.wait(["k"], LONG),
    ]
    for call in calls:
        store._session.cluster.current = 0
        began = time.monotonic()
        call()
        assert time.monotonic() - began < 1
    assert "no leader" in store._session.cluster.trouble
    store.close()


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_wait_outlives_the_member_that_it_waits_on(etcd3: LocalEtcd, store: EtcdStore, fault: str) -> None:
    leader = etcd3.await_leader()
    number = (leader + 1) % 3
    waiter = store.clone()
    waiter._session.cluster.current = number
    woken: list[float] = []

    def wait() -> None:
        waiter.wait(["k"], LONG)
        woken.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    (etcd3.kill if fault == "kill" else etcd3.pause)(number)
    other = EtcdStore.clone(store)
    other._session.cluster.current = leader
    other.set("k", "1")
    began = time.monotonic()
    thread.join(30)
    assert woken
    assert woken[0] - began < 12
    etcd3.resume(number)


def test_a_barrier_goes_through_an_election(etcd3: LocalEtcd, store: EtcdStore) -> None:
    came: list[int] = []

    def come(me: int) -> None:
        mine = store.clone()
        for turn in range(150):
            mine.barrier(f"b{turn}", 3, LONG)
        came.append(me)

    threads = [threading.Thread(target=come, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    etcd3.kill(etcd3.await_leader())
    for thread in threads:
        thread.join(120)
    assert sorted(came) == [0, 1, 2]
    assert {store.get(f"b{turn}") for turn in range(150)} == {b"3"}


def test_the_keys_outlive_an_outage_that_is_longer_than_their_lease(etcd3: LocalEtcd) -> None:
    """While etcd has no leader no lease runs out, and a new leader gives each its whole time again."""
    store = EtcdStore(etcd3.address("short", "lease=2"), LONG)
    store.set("k", "1")
    leader = etcd3.await_leader()
    gone = [leader, (leader + 1) % 3]
    for number in gone:
        etcd3.kill(number)
    time.sleep(4)
    for number in gone:
        etcd3.start_member(number)
    assert store.get("k") == b"1"
    time.sleep(3)
    assert store.get("k") == b"1"
    store.close()

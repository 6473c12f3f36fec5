"""How long things live: the Python half of a store below C++, a store across fork and exit, the keys of a run, the lease they are under."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from aetcd import rpc
from torch.distributed import DistNetworkError, PrefixStore, Store

from coxless.address import EtcdAddress, parse
from coxless.store import connect, refuse_unfit
from coxless.stores import as_etcd
from coxless.stores.etcd import EtcdStore
from coxless.stores.etcd_cells import Layout
from coxless.stores.etcd_cluster import RANGE, REVOKE, Cluster, Deadline

from ...conftest import NewRun
from .clients import as_another_process, new_session

SHORT = timedelta(milliseconds=300)


def raw_keys(address: str) -> list[bytes]:
    """What etcd itself holds of the run."""
    parsed = parse(address)
    assert isinstance(parsed, EtcdAddress)
    cluster = Cluster(parsed)
    root = Layout(parsed.run).root
    found = cluster.call(RANGE, rpc.RangeRequest(key=root, range_end=root[:-1] + b"0"), Deadline(timedelta(seconds=10))).kvs
    cluster.close()
    return [each.key for each in found]


def expire(store: EtcdStore) -> None:
    """What etcd does when nobody has renewed the lease for its time."""
    session = store._session
    session.cluster.call(REVOKE, rpc.LeaseRevokeRequest(ID=session.lease), Deadline(timedelta(seconds=10)))


# -- below C++


def test_a_store_that_only_c_plus_plus_refers_to_still_answers(new_run: NewRun) -> None:
    prefixed = PrefixStore("p", EtcdStore(new_run()))
    clone = prefixed.clone()
    of_clone = PrefixStore("q", clone.clone())
    gc.collect()
    prefixed.set("a", "1")
    assert clone.get("a") == b"1"
    of_clone.set("b", "2")
    assert prefixed.get("q/b") == b"2"
    assert prefixed.delete_key("a")
    assert prefixed.num_keys() == 1
    refuse_unfit(of_clone)
    assert as_etcd(of_clone) is not None


GROUP = """
import sys, gc, torch, torch.distributed as dist
from datetime import timedelta
from coxless.stores.etcd import EtcdStore
rank, prefixed = int(sys.argv[2]), sys.argv[3] == "prefixed"
make = lambda: EtcdStore(sys.argv[1], timedelta(seconds=60))
store = dist.PrefixStore("p", make()) if prefixed else make()
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
del store; gc.collect()
tensor = torch.tensor([rank + 1.0])
dist.all_reduce(tensor)
group = dist.new_group([0, 1])  # it goes to the store again
dist.all_reduce(tensor, group=group)
assert tensor.item() == 6, tensor
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.processes
@pytest.mark.parametrize("how", ["plain", "prefixed"])
def test_init_process_group(new_run: NewRun, how: str) -> None:
    address = new_run()
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [subprocess.Popen([sys.executable, "-c", GROUP, address, str(rank), how], env=environment) for rank in (0, 1)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]


# -- closing, ending, forking


def test_a_closed_store_says_so_and_its_clones_go_on(new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    clone = store.clone()
    session = clone._session
    store.close()
    store.close()
    clone.set("k", "1")
    assert session.users == 1
    clone.close()
    with pytest.raises(DistNetworkError, match="was closed"):
        clone.get("k")
    assert session.lost


def test_the_stores_of_a_process_share_what_is_costly(new_run: NewRun) -> None:
    address = new_run()
    first, second = EtcdStore(address), EtcdStore(address)
    assert first._session is second._session is first.clone()._session
    assert EtcdStore(new_run())._session is not first._session


@pytest.mark.processes
def test_a_process_that_closes_nothing_ends_all_the_same(new_run: NewRun) -> None:
    code = (
        "import sys; from coxless.store import connect; s = connect(sys.argv[1]); s.set('k', '1'); print(s.get('k'))\n"
        "try: s.barrier('b', 2, s.timeout / 100)  # which leaves a thread that listens\n"
        "except RuntimeError: pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, new_run()], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "b'1'\n", "")


FORK = """
import multiprocessing, os, sys
from coxless.store import connect
store = connect(sys.argv[1])
store.set("k", "parent")
def child(results):
    try:
        store.get("k")
    except RuntimeError as error:
        results.put(str(error))
context = multiprocessing.get_context("fork")
results = context.Queue()
children = [context.Process(target=child, args=(results,)) for _ in range(3)]
for process in children:
    process.start()
    store.set("k", "parent")  # while they run
for process in children:
    print(results.get(timeout=30))
    process.join(30)
    assert process.exitcode == 0, process.exitcode
assert store.get("k") == b"parent"
"""


@pytest.mark.processes
def test_a_forked_child_is_told_and_does_its_parent_no_harm(new_run: NewRun) -> None:
    """Data loaders fork: the child may hold the store, and must neither hang nor disturb."""
    ended = subprocess.run([sys.executable, "-c", FORK, new_run()], capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("connections do not survive a fork: make another one here") == 3
    assert ended.stderr == ""


def test_a_store_cannot_be_pickled(new_run: NewRun) -> None:
    """As TCPStore: it is made where it is used."""
    with pytest.raises((TypeError, AttributeError)):
        multiprocessing.reduction.ForkingPickler.dumps(EtcdStore(new_run()))


# -- the run's keys


def test_runs_know_nothing_of_each_other(new_run: NewRun) -> None:
    one, other = EtcdStore(new_run()), EtcdStore(new_run())
    one.set("k", "1")
    assert not other.check(["k"])
    assert other.list_keys() == []


def test_everything_that_is_written_is_under_the_runs_name_and_its_lease(new_run: NewRun) -> None:
    address = new_run()
    store = EtcdStore(address)
    write_everything(store)
    keys = raw_keys(address)
    assert len(keys) > 6
    assert all(key.startswith(f"/coxless/{store.etcd.run}/".encode()) for key in keys)
    expire(store)
    assert raw_keys(address) == []


def write_everything(store: Store) -> None:
    store.set("a", "1")
    store.append("b", "1")
    store.add("c", 1)
    store.compare_set("d", "", "1")
    store.multi_set(["e", "f"], ["1", "2"])
    store.barrier("g", 1, SHORT)


def test_the_keys_do_not_grow_with_what_is_written(new_run: NewRun) -> None:
    address = new_run()
    store = EtcdStore(address)
    write_everything(store)
    before = len(raw_keys(address))
    for _ in range(20):
        store.set("a", "1")
        store.add("c", 1)
        store.barrier("x", 1, SHORT)
        store.delete_key("x")
        store.append("y", "1")
        store.set("y", "1")
        store.delete_key("y")
        store.clone().set("a", "2")
    assert len(raw_keys(address)) == before


@pytest.mark.processes
def test_a_dead_job_leaves_nothing_behind_and_a_living_one_keeps_it_all(new_run: NewRun) -> None:
    """Killed, not closed; its keys outlive it by the lease, and not by more than etcd is late."""
    address = new_run("lease=2")
    code = "import sys; from coxless.store import connect; s = connect(sys.argv[1]); s.set('k', '1'); print(flush=True); input()"
    command = [sys.executable, "-c", code, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        job.stdout.readline()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert raw_keys(address)
            time.sleep(0.5)
        job.kill()
        job.wait()
    ended = time.monotonic()
    while raw_keys(address):
        assert time.monotonic() - ended < 10
        time.sleep(0.1)


def test_who_comes_later_finds_the_same_lease(new_run: NewRun) -> None:
    address = new_run("lease=30")
    first = EtcdStore(address)
    code = "import sys; from coxless.stores.etcd import EtcdStore; s = EtcdStore(sys.argv[1]); print(s._session.lease, s._session.ttl, s.get('k'))"
    first.set("k", "1")
    told = subprocess.run([sys.executable, "-c", code, address.replace("=30", "=60")], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(first._session.lease), "30", "b'1'"]


def test_of_many_who_come_first_together_one_makes_the_lease(new_run: NewRun) -> None:
    parsed = parse(new_run())
    assert isinstance(parsed, EtcdAddress)
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(new_session, [parsed] * 12))
    assert len({each.lease for each in made}) == 1
    assert len({each.created for each in made}) == 1
    for each in made:
        each.close()


# -- the lease runs out while the job is away


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("k"),
    "check": lambda store: store.check(["k"]),
    "list_keys": lambda store: store.list_keys(),
    "probe": lambda store: store.compare_set("k", "?", "?"),
    "set": lambda store: store.set("k", "old"),
    "add": lambda store: store.add("n", 1),
    "append": lambda store: store.append("k", "old"),
    "compare_set": lambda store: store.compare_set("k", "", "old"),
    "compare_set of what the new run holds": lambda store: store.compare_set("k", "new", "old"),
    "delete_key": lambda store: store.delete_key("k"),
    "multi_set": lambda store: store.multi_set(["k"], ["old"]),
    "multi_get": lambda store: store.multi_get(["k"]),
    "wait": lambda store: store.wait(["k"], SHORT),
    "barrier": lambda store: store.barrier("b", 1, SHORT),
}


@pytest.mark.parametrize("begun_anew", [False, True], ids=["nobody is there", "others have begun anew"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_after_the_lease_every_operation_says_that_the_keys_are_gone_and_touches_nothing(
    new_run: NewRun, operation: str, begun_anew: bool
) -> None:
    """For the crew that is a lost store: DistNetworkError, a new connection, recovery. Never a mixture of old and new keys."""
    address = new_run()
    store = EtcdStore(address)
    store.set("k", "old")
    expire(store)
    if begun_anew:
        parsed = parse(address)
        assert isinstance(parsed, EtcdAddress)
        anew = as_another_process(parsed)
        anew.set("k", "new")
    with pytest.raises(DistNetworkError, match="are gone: their lease of 60 s ran out"):
        OPERATIONS[operation](store)
    with pytest.raises(DistNetworkError, match="are gone"):  # for good
        store.get("k")
    if begun_anew:
        assert anew.get("k") == b"new"
        assert anew.list_keys() == ["k"]
    fresh = store.clone()  # a reconnection
    assert fresh.check(["k"]) == begun_anew
    fresh.set("mine", "1")
    assert fresh.get("mine") == b"1"


def test_a_wait_is_not_ended_by_the_keys_of_a_later_run(new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    told: list[BaseException] = []

    def wait() -> None:
        try:
            store.wait(["k"], timedelta(seconds=20))
        except RuntimeError as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    expire(store)
    store._session.lost = "as the thread that renews the lease finds out"
    later = store.clone()
    store._session.lost = ""
    later.set("k", "1")
    thread.join(30)
    assert isinstance(told[0], DistNetworkError)


@pytest.mark.processes
def test_a_frozen_process_learns_of_it_when_it_runs_again(new_run: NewRun) -> None:
    """Really: SIGSTOP for longer than the lease."""
    address = new_run("lease=2")
    code = (
        "import sys; from coxless.store import connect; s = connect(sys.argv[1]); s.set('k', '1'); print('ready', flush=True); input()\n"
        "try: print(s.get('k'), flush=True)\n"
        "except RuntimeError as error: print(type(error).__name__, error, flush=True)\n"
        "print(s.clone().check(['k']), flush=True)"
    )
    command = [sys.executable, "-c", code, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdin is not None
        job.stdout.readline()
        os.kill(job.pid, signal.SIGSTOP)
        try:
            while raw_keys(address):
                time.sleep(0.1)
        finally:
            os.kill(job.pid, signal.SIGCONT)
        job.stdin.write("\n")
        job.stdin.flush()
        line = job.stdout.readline()
        assert line.startswith("DistNetworkError")
        assert "are gone: their lease of 2 s ran out" in line
        assert job.stdout.readline() == "False\n"
        assert job.wait(30) == 0


def test_connect_makes_one(new_run: NewRun) -> None:
    store = connect(new_run())
    assert isinstance(store, EtcdStore)
    refuse_unfit(store)

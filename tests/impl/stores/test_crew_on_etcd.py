"""The crew on a real etcd of three: ranks are real processes and are killed, and so are members of etcd, at the same time."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import PrefixStore

import coxless
from coxless import keys
from coxless.dead_marks import mark_dead
from coxless.records import parse_record
from coxless.stores.etcd import EtcdStore
from coxless.stores.local_etcd import LocalEtcd
from coxless_traces.validation import validate

from ...conftest import NewRun
from ..crews import SILENT, Start, assert_out_of_reach, at, crew_of, founded, in_threads, starting, step

pytestmark = pytest.mark.processes


@pytest.fixture
def start(etcd3: LocalEtcd) -> Iterator[Start]:
    with starting(etcd3.address("crew")) as started:
        yield started


def test_healthy_iterations(start: Start) -> None:
    ranks = founded(start)
    for number in range(2, 20):
        views = step(ranks, number)
        assert [view["iteration"] for view in views] == [number] * 3
        assert len({view["winner"] for view in views}) == 1
        assert all(view["ranks"] == [0, 1, 2] and view["committed"] for view in views)


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_the_leader_is_lost_at_the_barrier_and_nobody_is_left_out(etcd3: LocalEtcd, start: Start, fault: str) -> None:
    ranks = founded(start)
    number = 1
    for _ in range(2):
        for _ in range(3):
            number += 1
            step(ranks, number)
        leader = etcd3.await_leader()
        number += 1
        ranks[0].tell("ok")
        ranks[1].tell("ok")
        (etcd3.kill if fault == "kill" else etcd3.pause)(leader)
        ranks[2].tell("ok")
        views = [rank.until(at(number)) for rank in ranks]
        assert [view["iteration"] for view in views] == [number] * 3
        assert all(view["ranks"] == [0, 1, 2] and view["committed"] for view in views)
        etcd3.resume(leader)
        etcd3.start_member(leader)
        etcd3.await_leader()


def test_a_rank_and_the_leader_are_killed_together(etcd3: LocalEtcd, start: Start) -> None:
    ranks = founded(start)
    step(ranks, 2)
    etcd3.kill(etcd3.await_leader())
    ranks[1].signal(signal.SIGKILL)
    others = [ranks[0], ranks[2]]
    views = step(others, 3)
    assert [view["ranks"] for view in views] == [[0, 2], [0, 2]]
    again = start(1)
    number = 3
    while views[0]["ranks"] != [0, 1, 2]:
        number += 1
        views = step(others, number)
        assert number < 5000
    back = again.until(lambda line: "iteration" in line)
    assert (back["iteration"], back["rejoined"], back["holds"]) == (number, True, False)


def test_a_mark_of_death_is_written_by_whoever_reaches_etcd(etcd3: LocalEtcd, start: Start) -> None:
    ranks = founded(start, heartbeat_timeout=600.0)
    views = step(ranks, 2)
    ranks[1].signal(signal.SIGKILL)
    ranks[1].popen.wait(10)
    etcd3.kill((etcd3.await_leader() + 1) % 3)
    mark_dead(coxless.connect(etcd3.address("crew")), [views[1]["member"]])
    assert [view["ranks"] for view in step([ranks[0], ranks[2]], 3)] == [[0, 2], [0, 2]]


def test_without_a_quorum_there_is_one_clear_error_in_time(etcd3: LocalEtcd, start: Start) -> None:
    ranks = founded(start, timeout=4.0)
    leader = etcd3.await_leader()
    etcd3.kill(leader)
    etcd3.kill((leader + 1) % 3)
    assert_out_of_reach(ranks, f"the store at {etcd3.address('crew')} cannot be reached: no member of")


def test_back_with_a_quorum_it_goes_on_with_everybody(etcd3: LocalEtcd, start: Start) -> None:
    """Longer than the heartbeat timeout: the store's silence makes nobody suspect."""
    ranks = founded(start)
    step(ranks, 2)
    leader = etcd3.await_leader()
    gone = [leader, (leader + 1) % 3]
    for number in gone:
        etcd3.kill(number)
    for rank in ranks:
        rank.tell("ok")
    threading.Event().wait(2 * SILENT)
    for number in gone:
        etcd3.start_member(number)
    views = [rank.until(at(3)) for rank in ranks]
    assert all(view["ranks"] == [0, 1, 2] and view["committed"] for view in views)
    step(ranks, 4)


def test_a_lease_that_ran_out_is_a_lost_store_and_the_iteration_is_put_back(etcd3: LocalEtcd, start: Start) -> None:
    ranks = founded(start)
    step(ranks, 2)
    store = EtcdStore(etcd3.address("crew"))
    store._session._revoke(store._session.lease)
    views = step(ranks, 3)
    assert [view["iteration"] for view in views] == [3, 3, 3]
    assert all(view["committed"] and view["ranks"] == [0, 1, 2] for view in views)
    step(ranks, 4)
    fresh = store.clone()
    assert parse_record(fresh.get(keys.REGISTER).decode()).iteration == 4
    fresh.close()
    store.close()


def test_what_the_ranks_do_meanwhile_is_admitted_by_the_model(etcd3: LocalEtcd, start: Start, tmp_path: Path) -> None:
    """Recorded: 40 iterations with two kills of a rank and two of the leader."""
    size, until = 3, 40
    common: dict[str, Any] = {"until": until, "stepwise": False}
    trace = {"COXLESS_TRACE": str(tmp_path)}
    faults = {1: "arrive@9", 2: "won@22"}
    ranks = [
        start(rank, size, environment={**trace, **({"COXLESS_FAULT": faults[rank]} if rank in faults else {})}, **common)
        for rank in range(size)
    ]
    for number in (5, 18):
        ranks[0].until(at(number))
        leader = etcd3.await_leader()
        etcd3.kill(leader)
        for rank in (1, 2):
            if ranks[rank].popen.poll() is not None and ranks[rank].popen.returncode < 0:
                ranks[rank] = start(rank, size, environment=trace, **common)
        ranks[0].until(at(number + 3))
        etcd3.start_member(leader)
    assert ranks[0].until(lambda line: "end" in line)["end"] > until
    for rank in (1, 2):
        ranks[rank].popen.wait(60)
    verdict = validate(tmp_path)
    assert verdict.holds, verdict
    assert verdict.lines > until * 4


# -- in threads, on one member


def test_a_crew_of_threads_that_hurries(new_run: NewRun) -> None:
    address, size, until = new_run(), 6, 120

    def run(rank: int) -> list[tuple[int, str]]:
        with crew_of(address, rank, size) as crew:
            return [(iteration.number, iteration.epoch) for iteration in crew.iterations(until=until)]

    seen = in_threads(size, run)
    assert all(each == seen[0] for each in seen)
    numbers = [number for number, _ in seen[0]]
    assert numbers == list(range(1, until + 1))


def test_under_a_prefix_two_crews_share_a_run(new_run: NewRun) -> None:
    address = new_run()

    def run(number: int) -> int:
        name, rank = divmod(number, 2)
        store = PrefixStore(f"crew{name}", EtcdStore(address))
        with coxless.join(store, rank=rank, world_size=2) as crew:
            for iteration in crew.iterations(until=20 + name):
                assert [member.rank for member in iteration.participants] == [0, 1]
            assert crew.iteration is not None
            return crew.iteration.number

    assert in_threads(4, run) == [21, 21, 22, 22]


def test_the_store_does_not_grow_with_the_iterations(new_run: NewRun) -> None:
    address = new_run()
    watching: dict[int, int] = {}

    def run(rank: int) -> None:
        with crew_of(address, rank, 2) as crew:
            for iteration in crew.iterations(until=150):
                if rank == 0 and iteration.number in (50, 150):
                    crew._housekeeper._wake.set()
                    threading.Event().wait(0.3)
                    watching[iteration.number] = store.num_keys()

    store = EtcdStore(address)
    in_threads(2, run)
    assert watching[150] <= watching[50] + 3 * 96  # what waits to be deleted together
    assert store.num_keys() < 30

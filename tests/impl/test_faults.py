"""Real processes, really killed, on a real store server: the six phases and both scenarios of the original diagram, and what it forgot."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coxless
from coxless.dead_marks import mark_dead
from coxless.server import StoreServer, start_server

from .crews import SILENT, Process, Start, assert_out_of_reach, at, founded, starting, step, stopped

pytestmark = pytest.mark.processes


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


@pytest.fixture
def start(server: StoreServer) -> Iterator[Start]:
    with starting(server.address) as started:
        yield started


def test_the_six_phases_of_a_healthy_iteration(start: Start) -> None:
    """Train, arrive, detect, race, advance, go on: all see the same iteration, winner and participants."""
    ranks = founded(start)
    for number in range(2, 6):
        views = step(ranks, number)
        assert [view["iteration"] for view in views] == [number] * 3
        assert len({view["winner"] for view in views}) == 1
        assert all(view["ranks"] == [0, 1, 2] for view in views)
        assert all(view["committed"] for view in views)


def test_scenario_1_a_rank_crashes_in_training_and_the_others_go_on(start: Start) -> None:
    ranks = founded(start)
    before = step(ranks, 2)[0]
    ranks[1].signal(signal.SIGKILL)
    others = [ranks[0], ranks[2]]
    views = step(others, 3)
    assert [view["ranks"] for view in views] == [[0, 2], [0, 2]]
    assert all(view["committed"] for view in views), "both that went on voted ok"
    # Not before the heartbeat timeout (nobody is left out for being slow), and not long after it.
    assert SILENT - 0.5 < views[0]["at"] - before["at"] < SILENT + 2
    assert [view["ranks"] for view in step(others, 4)] == [[0, 2], [0, 2]]


def test_scenario_2_a_rank_restarts_before_the_iteration_advances(start: Start) -> None:
    """It does not count by its old arrival; it is taken in with the next decision, without the state, and no timeout is waited for."""
    ranks = [start(rank, heartbeat_timeout=600.0) for rank in range(3)]
    for rank in ranks:
        rank.until(at(1))
    step(ranks, 2)
    ranks[1].tell("ok")  # arrives at the barrier of 2
    ranks[1].signal(signal.SIGKILL)
    again = start(1, heartbeat_timeout=600.0)
    for number in (3, 4):
        views = step([ranks[0], ranks[2]], number)
        if views[0]["epoch"].startswith(f"{number}-"):
            break  # a new list; else it had been counted before it died, and its arrival there does not count again
    back = again.until(lambda line: "iteration" in line)
    assert back["rejoined"]
    assert not back["holds"]
    assert views[0]["ranks"] == back["ranks"] == [0, 1, 2]
    assert views[0]["iteration"] == back["iteration"] == number


def test_a_mark_by_whoever_saw_the_process_end_spares_the_timeout(start: Start, server: StoreServer) -> None:
    ranks = [start(rank, heartbeat_timeout=600.0) for rank in range(3)]
    member = [rank.until(at(1)) for rank in ranks][1]["member"]
    ranks[1].signal(signal.SIGKILL)
    ranks[1].popen.wait(10)
    mark_dead(coxless.connect(server.address), [member])
    assert [view["ranks"] for view in step([ranks[0], ranks[2]], 2)] == [[0, 2], [0, 2]]


@pytest.mark.parametrize("fault", ["arrive@2", "propose_same_epoch@2", "won@3", "wake@3"])
def test_a_kill_at_any_point_of_the_barrier_leaves_nobody_waiting(start: Start, fault: str) -> None:
    """won@3 and wake@3 only strike the rank that wins: every rank of three gets the fault but the first, so whoever is struck, one at
    least goes on."""
    ranks = [start(rank, environment={"COXLESS_FAULT": fault} if rank else {}) for rank in range(3)]
    for rank in ranks:
        rank.until(at(1))
    step(ranks, 2)
    for rank in ranks:
        rank.tell("ok")
    view = ranks[0].until(at(3))
    assert 0 in view["ranks"]
    assert len(view["ranks"]) >= 1
    for number in (4, 5):
        for rank in ranks:
            if rank.popen.poll() is None:
                rank.tell("ok")
        assert ranks[0].until(at(number))["iteration"] == number


@pytest.mark.parametrize("fault", ["take_incarnation@0", "create_register@0"])
def test_a_process_that_is_killed_as_it_starts_costs_its_rank_an_incarnation_and_nobody_else_anything(
    start: Start, fault: str
) -> None:
    """In a crew that is far beyond iteration 0: what counts is what the process has seen."""
    ranks = [start(rank) for rank in range(2)]
    absent = start(2, environment={"COXLESS_FAULT": fault})
    assert absent.popen.wait(60) == -signal.SIGKILL
    assert absent.read() == {}
    third = start(2)
    for rank in [*ranks, third]:
        assert rank.until(at(1))["iteration"] == 1
    third.signal(signal.SIGKILL)
    step(ranks, 2)
    again = start(2, environment={"COXLESS_FAULT": fault})
    assert again.popen.wait(60) == -signal.SIGKILL
    assert again.read() == {}
    assert [view["ranks"] for view in step(ranks, 3)] == [[0, 1]] * 2
    last = start(2)
    number = 3
    while step(ranks, number := number + 1)[0]["ranks"] != [0, 1, 2]:
        assert number < 20_000
    back = last.until(at(1))
    assert (back["iteration"], back["holds"], back["member"].partition("-")[0]) == (number, False, "2.4")


def test_a_frozen_rank_is_left_behind_learns_it_and_comes_back_without_the_state(start: Start) -> None:
    ranks = founded(start)
    step(ranks, 2)
    ranks[2].signal(signal.SIGSTOP)
    others = ranks[:2]
    assert step(others, 3)[0]["ranks"] == [0, 1]
    ranks[2].signal(signal.SIGCONT)
    ranks[2].tell("ok")
    number = 3
    while True:
        number += 1
        if step(others, number)[0]["ranks"] == [0, 1, 2]:
            break
        assert number < 20_000
    back = ranks[2].until(at(3))
    assert (back["iteration"], back["rejoined"], back["holds"]) == (number, True, False)


def test_of_two_processes_of_a_rank_the_older_stops_and_names_the_newer(start: Start) -> None:
    ranks = [start(rank) for rank in range(2)]
    third = start(2)
    for rank in [*ranks, third]:
        rank.until(at(1))
    newer = start(2)
    number = 1
    while True:
        number += 1
        third.tell("ok")
        views = step(ranks, number)
        if "2.2-" in str(newer_member := _member_of_two(views, newer)):
            break
        assert number < 20_000
    error = third.until(lambda line: "error" in line)
    assert error["error"] == "SupersededError"
    assert newer_member.partition(".")[2] in error["message"]


def _member_of_two(views: list[dict[str, Any]], newer: Process) -> str:
    """The newer process's member once a new epoch has taken it in, else ''."""
    if views[0]["epoch"].startswith(f"{views[0]['iteration']}-"):
        return str(newer.until(lambda line: "iteration" in line)["member"])
    return ""


def test_a_store_that_dies_is_one_clear_error_in_time_on_every_rank(start: Start, server: StoreServer) -> None:
    ranks = founded(start, timeout=4.0)
    server.kill()
    assert_out_of_reach(ranks, f"the store at {server.address} cannot be reached")


def test_a_store_that_comes_back_empty_gets_the_latest_iteration_back(start: Start, server: StoreServer) -> None:
    ranks = founded(start)
    step(ranks, 2)
    server.kill()
    with start_server(port=server.port):
        views = step(ranks, 3)
        assert [view["iteration"] for view in views] == [3, 3, 3]
        assert all(view["committed"] and view["ranks"] == [0, 1, 2] for view in views)
        step(ranks, 4)


def test_a_store_that_hangs_and_comes_back_is_told_of_once_and_makes_nobody_suspect(
    start: Start, server: StoreServer, tmp_path: Path
) -> None:
    """For longer than the heartbeat timeout: one line when it is away and one when it is back, on each rank, and nothing else."""
    logs = [tmp_path / f"rank{rank}" for rank in range(3)]
    ranks = [start(rank, log=logs[rank]) for rank in range(3)]
    for rank in ranks:
        rank.until(at(1))
    before = step(ranks, 2)

    def kept(view: dict[str, Any]) -> tuple[object, ...]:
        return view["member"], view["ranks"], view["holds"], view["rejoined"]

    stopped(server.pid)
    threading.Timer(3 * SILENT, os.kill, (server.pid, signal.SIGCONT)).start()
    for number in (3, 4):
        views = step(ranks, number)
        assert all((view["iteration"], view["ranks"], view["committed"]) == (number, [0, 1, 2], True) for view in views)
        assert [kept(view) for view in views] == [kept(view) for view in before], "nobody was left out, nobody rejoined"
    for log in logs:
        away, back = log.read_text().splitlines()
        assert re.fullmatch(rf"the store at {server.address} is away \(no answer for 2\.[5-9] s\): waiting for it", away)
        seconds = re.fullmatch(rf"the store at {server.address} is back, after ([0-9.]+) s", back)
        assert seconds is not None
        assert 2.5 < float(seconds[1]) < 3 * SILENT + 20

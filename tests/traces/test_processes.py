"""Traces replayed with each rank as a process: every store operation released by the scheduler, every crash a SIGKILL."""

import pytest

from coxless.server import start_server
from coxless.store import connect
from coxless_model.environment import hardened
from coxless_traces.processes import in_processes
from coxless_traces.replay import Lockstep
from coxless_traces.targets import Torch
from coxless_traces.walks import walk

FAULTS = {"crashes": 1, "restarts": 1, "suspicions": 1, "failed_votes": 1, "lost_replies": 1, "join_timeouts": 1}


@pytest.fixture(scope="module")
def server():
    with start_server() as running:
        yield running


@pytest.mark.processes
@pytest.mark.parametrize("seed", range(24))
def test_a_walk_with_a_process_for_each_rank(server, seed):
    system = hardened(2, 3, **FAULTS)
    lockstep = Lockstep(system, Torch("tcp", connect(server.address)), in_processes(server.address))
    try:
        for before, action, after in walk(system, seed, 120):
            lockstep.step(before, action, after)
    finally:
        lockstep.close()
    assert lockstep.steps > 5

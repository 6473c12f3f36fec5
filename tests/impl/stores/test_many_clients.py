"""Many processes at one store at once: nothing is lost, and each number and each win is given out once."""

import json
import subprocess
import sys
from typing import Any

import pytest

from coxless.store import connect

pytestmark = pytest.mark.processes

PROCESSES = 6
EACH = 60

# Begins when all have come, so that they are in each other's way.
CLIENT = """
import json, sys
from datetime import timedelta
from coxless.store import connect
me, size, each = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
store = connect(sys.argv[1], timeout=timedelta(seconds=60))
store.add("come", 1)
while store.add("come", 0) < size:
    pass
added = [store.add("n", 1) for _ in range(each)]
for i in range(each):
    store.append("log", f"{me}.{i},")
won = 0
for i in range(each):
    won += store.compare_set(f"decision{i}", "", f"by {me}") == f"by {me}".encode()
mine = 0
while mine < each:  # a counter by compare_set alone
    seen = store.get("counter").decode()
    name = f"{int(seen.split()[0]) + 1} {me}"
    mine += store.compare_set("counter", seen, name) == name.encode()
for i in range(10 if not sys.argv[1].startswith("file:") and hasattr(store, "barrier") else 0):  # else it is not one operation
    store.barrier(f"barrier{i}", size, timedelta(seconds=60))
print(json.dumps({"added": added, "won": won}))
"""


def run(address: str) -> list[dict[str, Any]]:
    connect(address).set("counter", "0")
    command = [sys.executable, "-c", CLIENT, address]
    processes = [
        subprocess.Popen([*command, str(me), str(PROCESSES), str(EACH)], stdout=subprocess.PIPE, text=True)
        for me in range(PROCESSES)
    ]
    told = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    return [json.loads(each) for each in told]


def test_of_many_processes_nothing_is_lost(shared_address: str) -> None:
    told = run(shared_address)
    store = connect(shared_address)
    barriers = 0 if shared_address.startswith("file:") or not hasattr(store, "barrier") else 10
    # add: every number once
    assert sorted(number for each in told for number in each["added"]) == list(range(1, PROCESSES * EACH + 1))
    # append: every part, each process's own in its order
    parts = [part.split(".") for part in store.get("log").decode().split(",")[:-1]]
    assert len(parts) == PROCESSES * EACH
    for me in range(PROCESSES):
        assert [int(i) for who, i in parts if int(who) == me] == list(range(EACH))
    # compare_set: one winner each, and no step of the counter twice
    assert sum(each["won"] for each in told) == EACH
    assert int(store.get("counter").split()[0]) == PROCESSES * EACH
    # barrier: all were counted, and all came through
    assert [store.compare_set(f"barrier{i}", "?", "?") for i in range(barriers)] == [str(PROCESSES).encode()] * barriers

"""Process groups that give up together: real Gloo groups over a real TCPStore, in threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch

import coxless
from coxless.server import start_server
from coxless.training import Background, CollectiveFailed, EpochGroup, open_group
from coxless.training.sealed import NamedPrefix, seal

from .crews import stopped
from .training import with_groups

pytestmark = pytest.mark.usefixtures("loopback")


def test_a_missing_participant_does_not_hold_up_the_meeting(store: Any) -> None:
    started = time.monotonic()
    with pytest.raises(CollectiveFailed, match="rank 1 is dead"):
        open_group(store, "e", 0, 2, watch=lambda: "rank 1 is dead", background=Background(), timeout=timedelta(seconds=3))
    assert time.monotonic() - started < 1


def test_a_participant_that_has_gone_on_ends_the_meeting_and_not_the_training(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has deleted its address between the wait for it and the look at it, of which TCPStore says that it is empty
    (test_reconnection.py shows that on a real server)."""
    address = "process_group:e/0/1"
    store.set(address, seal(b"somewhere"))

    get = NamedPrefix.get

    def deleted_meanwhile(self: NamedPrefix, key: str) -> bytes:
        if key != "0/1":
            own: bytes = get(self, key)
            return own
        store.delete_key(address)
        return b""

    monkeypatch.setattr(NamedPrefix, "get", deleted_meanwhile)
    with pytest.raises(CollectiveFailed, match=f"{address}' was deleted: its participant has left this meeting"):
        open_group(store, "e", 0, 2, watch=lambda: None, background=Background(), timeout=timedelta(seconds=10))


def test_a_pending_collective_is_given_up_and_parked(store: Any) -> None:
    parked = Background()
    gone = threading.Event()

    def body(group: EpochGroup) -> float:
        if group.index == 2:
            gone.wait(10)  # alive, but never comes: no socket is ever closed
            return 0
        started = time.monotonic()
        with pytest.raises(CollectiveFailed, match="the others gave up"):
            group.all_reduce(torch.ones(1000))
        assert group.closed
        return time.monotonic() - started

    began = time.monotonic()
    options = {"background": parked, "timeout": timedelta(seconds=3)}
    watch = lambda: "the others gave up" if time.monotonic() - began > 0.3 else None  # noqa: E731
    threading.Timer(2, gone.set).start()
    times = with_groups(store, 3, body, watch=watch, **options)
    assert max(times) < 1.5
    assert parked.settle(10), "the pending work must end with the timeout of its group"


def test_ctrl_c_in_a_collective_is_not_held_up_by_it(store: Any) -> None:
    """Dropping a group while its work is pending blocks until the group's timeout."""
    parked, gone = Background(), threading.Event()

    def body(group: EpochGroup) -> float:
        if group.index == 1:
            gone.wait(10)
            return 0
        group._watch = interrupt
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            group.all_reduce(torch.ones(1000))
        assert group.closed
        assert parked.pending == 1
        gone.set()
        return time.monotonic() - started

    def interrupt() -> str | None:
        raise KeyboardInterrupt

    took = with_groups(store, 2, body, background=parked, timeout=timedelta(seconds=8))[0]
    assert took < 5, "8 s is the group's timeout"


def test_a_mistake_in_the_making_of_a_group_is_no_failed_collective(store: Any) -> None:
    def make(*arguments: Any) -> Any:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        open_group(store, "e", 0, 2, watch=lambda: None, background=Background(), backend=make)


def test_a_meeting_on_a_store_that_hangs_ends_in_time() -> None:
    with start_server() as server:
        store = coxless.connect(server.address)
        stopped(server.pid)
        started = time.monotonic()
        with pytest.raises(CollectiveFailed, match="not all have met within 1 s"):
            open_group(store, "e", 0, 2, watch=lambda: None, background=Background(), timeout=timedelta(seconds=1))
        assert time.monotonic() - started < 8


def test_the_process_ends_quickly_with_work_pending(store: Any) -> None:
    """Parked work must not hold up, or crash, the end of the process."""
    program = f"""
import time, torch, threading, torch.distributed as dist
from datetime import timedelta
from coxless.training import *
store = dist.TCPStore("127.0.0.1", {store.port}, is_master=False)
groups = {{}}
make = lambda index: groups.update({{index: open_group(store, "e", index, 2, watch=lambda: None, background=Background())}})
thread = threading.Thread(target=make, args=(0,)); thread.start(); make(1); thread.join()
groups[0]._watch = lambda: "enough"
try:
    groups[0].all_reduce(torch.ones(10))
except CollectiveFailed as error:
    print(error, flush=True)
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "enough\n"), done.stderr
    assert time.monotonic() - started < 25

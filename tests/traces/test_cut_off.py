"""A rank whose network is gone: no connection is reset, nothing answers. The machines are network namespaces, joined by a cable (veth) that is
pulled for longer than the heartbeat timeout and put back. Nothing leaves the namespaces."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coxless_traces.validation import validate

from ..impl.crews import Process

pytestmark = pytest.mark.processes

HUB, FAR = "10.77.0.1", "10.77.0.2"
PORT = 29400
TIMEOUT = 2.0
TIMING: dict[str, Any] = {"heartbeat_interval": 0.3, "heartbeat_timeout": TIMEOUT, "join_timeout": 60, "timeout": 60}


@dataclass
class Machine:
    """A network namespace, which lives as long as this holder process does; and that ends with its stdin, whatever ends the tests."""

    holder: subprocess.Popen[bytes]

    @property
    def within(self) -> list[str]:
        """The command that runs another one on this machine."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]

    def run(self, *command: str) -> None:
        done = subprocess.run([*self.within, *command], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"

    def end(self) -> None:
        self.holder.communicate(timeout=10)


def machine() -> Machine:
    """Skips the test where none can be made."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo here; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdout is not None
    if holder.stdout.readline() != b"here\n":
        _, error = holder.communicate(timeout=10)
        pytest.skip(f"no network namespace can be made here (root?): {error.decode().strip()}")
    return Machine(holder)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two, and the cable between them: `cable` at either end."""
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    with contextlib.ExitStack() as stack:
        hub = machine()
        stack.callback(hub.end)
        far = machine()
        stack.callback(far.end)
        hub.run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(far.holder.pid))
        for one, address in ((hub, HUB), (far, FAR)):
            one.run("ip", "address", "add", f"{address}/24", "dev", "cable")
            one.run("ip", "link", "set", "lo", "up")
            one.run("ip", "link", "set", "cable", "up")
        yield hub, far


def step(ranks: list[Process], number: int) -> list[dict[str, Any]]:
    for rank in ranks:
        rank.tell("ok")
    return [rank.until(lambda line: line.get("iteration", 0) >= number) for rank in ranks]


def test_a_rank_that_is_cut_off_is_left_behind_and_comes_back_with_the_network(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    hub, far = machines
    trace = tmp_path / "recorded"
    environment = {"COXLESS_TRACE": str(trace)}
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen([*hub.within, sys.executable, "-m", "coxless", "serve", "--host", HUB, "--port", str(PORT)])
        stack.callback(lambda: (server.kill(), server.wait(10)))

        def start(rank: int, at: Machine) -> Process:
            process = Process(
                f"{HUB}:{PORT}",
                rank,
                3,
                stepwise=True,
                environment=environment,
                log=tmp_path / f"log{rank}",
                within=at.within,
                **TIMING,
            )
            stack.callback(process.end)
            return process

        near, lone = [start(rank, hub) for rank in range(2)], start(2, far)
        everybody = [*near, lone]
        for rank in everybody:
            rank.until(lambda line: "iteration" in line)
        before = step(everybody, 2)

        far.run("ip", "link", "set", "cable", "down")
        lone.tell("ok")  # arrives, if it could
        for number in (3, 4):
            views = step(near, number)
            assert [(view["ranks"], view["committed"]) for view in views] == [([0, 1], True)] * 2
        assert views[0]["at"] - before[0]["at"] > TIMEOUT - 0.5, "not before the heartbeat timeout"

        far.run("ip", "link", "set", "cable", "up")
        while views[0]["ranks"] != [0, 1, 2]:
            number += 1
            views = step(near, number)
            assert number < 100_000
        back = lone.until(lambda line: "iteration" in line)
        assert (back["iteration"], back["ranks"], back["rejoined"], back["holds"]) == (number, [0, 1, 2], True, False)
        views = step(everybody, number + 1)
        assert [view["ranks"] for view in views] == [[0, 1, 2]] * 3
        for rank in everybody:
            rank.tell("end")
        assert [rank.popen.wait(30) for rank in everybody] == [0, 0, 0]
        log = (tmp_path / "log2").read_text()
        assert f"rank 2 was left behind at iteration 2 and rejoins at {back['iteration']}" in log
        assert log.count(" is away (") == log.count(" is back, after ") == 1
    verdict = validate(trace)
    assert verdict.word == "admitted", verdict

"""A rank whose network is gone: no connection is reset, nothing answers. The machines are network namespaces, joined by a cable (veth) that is
pulled for longer than the heartbeat timeout and put back, or that carries nothing in one direction. Nothing leaves the namespaces."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coxless_traces.validation import validate

from ..impl.crews import SILENT, at, starting, step

pytestmark = pytest.mark.processes

HUB, FAR = "10.77.0.1", "10.77.0.2"
PORT = 29400


@dataclass
class Machine:
    """A network namespace, which lives as long as this holder process does; and that ends with its stdin, whatever ends the tests."""

    holder: subprocess.Popen[bytes]

    @property
    def within(self) -> list[str]:
        """The command that runs another one on this machine."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]

    def attempt(self, *command: str) -> str:
        """Run it; what is wrong, or ""."""
        done = subprocess.run([*self.within, *command], capture_output=True, text=True, timeout=30, check=False)
        return f"{' '.join(command)}: {done.stderr.strip()}" if done.returncode else ""

    def run(self, *command: str) -> None:
        assert not (wrong := self.attempt(*command)), wrong

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
        cable = ("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(far.holder.pid))
        if wrong := hub.attempt(*cable):
            pytest.skip(f"no cable between two network namespaces can be made here: {wrong}")
        for one, address in ((hub, HUB), (far, FAR)):
            one.run("ip", "address", "add", f"{address}/24", "dev", "cable")
            one.run("ip", "link", "set", "lo", "up")
            one.run("ip", "link", "set", "cable", "up")
        yield hub, far


LINK, ROUTE = ("ip", "link", "set", "cable"), ("ip", "route")
CUTS = {
    "the cable is pulled": (1, (*LINK, "down"), (*LINK, "up")),
    # What it asks arrives: it is counted at the barrier, and never hears of that.
    "replies are lost": (0, (*ROUTE, "add", "blackhole", FAR), (*ROUTE, "del", "blackhole", FAR)),
    "requests are lost": (1, (*ROUTE, "add", "blackhole", HUB), (*ROUTE, "del", "blackhole", HUB)),
}
"""On which of the two machines, by which command, and what mends it."""


@pytest.mark.parametrize("cut", CUTS)
def test_a_rank_that_is_cut_off_is_left_behind_and_comes_back_with_the_network(
    cut: str, machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    hub, far = machines
    which, breaks, mends = CUTS[cut]
    serve = [*hub.within, sys.executable, "-m", "coxless", "serve", "--host", HUB, "--port", str(PORT)]
    logs = [tmp_path / f"log{rank}" for rank in range(3)]
    trace = tmp_path / "recorded"
    with subprocess.Popen(serve) as server, starting(f"{HUB}:{PORT}") as start:
        try:
            ranks = [
                start(rank, log=logs[rank], environment={"COXLESS_TRACE": str(trace)}, within=machine.within)
                for rank, machine in enumerate((hub, hub, far))
            ]
            near, lone = ranks[:2], ranks[2]
            for rank in ranks:
                rank.until(at(1))
            before = step(ranks, 2)

            machines[which].run(*breaks)
            lone.tell("ok")  # it arrives, if it can
            number, views = 3, step(near, 3)
            if cut == "replies are lost" and views[0]["ranks"] == [0, 1, 2]:
                number, views = 4, step(near, 4)
            assert [(view["ranks"], view["committed"]) for view in views] == [([0, 1], True)] * 2
            assert views[0]["at"] - before[0]["at"] > SILENT - 0.5, "not before the heartbeat timeout"

            machines[which].run(*mends)
            while views[0]["ranks"] != [0, 1, 2]:
                number += 1
                views = step(near, number)
                assert number < 100_000
            back = lone.until(lambda line: line.get("iteration", 0) > 3)
            assert (back["iteration"], back["ranks"], back["rejoined"], back["holds"]) == (number, [0, 1, 2], True, False)
            assert [view["ranks"] for view in step(ranks, number + 1)] == [[0, 1, 2]] * 3
            for rank in ranks:
                rank.tell("end")
            assert [rank.popen.wait(30) for rank in ranks] == [0, 0, 0]
        finally:
            server.kill()
    assert not logs[0].read_text()
    assert not logs[1].read_text()
    log = logs[2].read_text()
    assert re.search(rf"rank 2 was left behind at iteration [23] and rejoins at {number}$", log, re.MULTILINE)
    assert log.count(" is away (") == log.count(" is back, after ") == 1
    verdict = validate(trace)
    assert verdict.word == "admitted", verdict

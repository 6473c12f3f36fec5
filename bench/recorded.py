"""A recorded chaos run, and how long its validation takes: `python -m bench.recorded`.

The ranks train nothing: they vote, now and then against an iteration, and one of them after another is killed and started again. With
--cuts a rank's connections are cut now and then; with --losses the store is killed, and comes back empty.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import coxless
from coxless.events import Event, Kind
from coxless.supervisor import Exited, Supervisor
from coxless_traces.validation import validate


def rank(iterations: int, cuts: float, pause: float) -> None:
    chance = random.Random(os.getpid())
    with coxless.join(heartbeat_interval=timedelta(seconds=0.3), heartbeat_timeout=timedelta(seconds=3)) as crew:
        for _ in crew.iterations(until=iterations):
            if chance.random() < 0.03:
                crew.vote(False)
            if chance.random() < cuts:
                threading.Timer(0.01 * chance.random(), crew._driver.connection.shut_down).start()
            if chance.random() < cuts:
                crew._housekeeper._connection.shut_down()
            time.sleep(pause * chance.random())


def again(exited: Exited) -> timedelta | None:
    """Every killed rank comes back at once; one that failed by itself does not, so that it is seen."""
    return timedelta(0) if exited.signal is not None else None


def chaos(
    folder: Path, ranks: int, iterations: int, kills: int, every: float, losses: int, told: list[str]
) -> tuple[float, int, int]:
    """How long the run took from the first decision on, how many ranks were killed, and how often the store was."""
    command = [sys.executable, "-m", "bench.recorded", "--rank", "--iterations", str(iterations), *told]
    chance, killed, lost = random.Random(1), 0, 0
    servers: list[int] = []

    def seen(event: Event) -> None:
        if event.kind in (Kind.STORE_STARTED, Kind.STORE_RESTARTED) and event.pid is not None:
            servers.append(event.pid)

    with Supervisor(
        command, ranks=ranks, restart=again, max_restarts=kills, environment={"COXLESS_TRACE": str(folder)}, on_event=seen
    ) as supervisor:
        while not _decided(folder):
            time.sleep(0.05)
            assert not supervisor.poll(), "nothing was decided"
        began = due = time.monotonic()
        loss_due = began + every / 2
        while not supervisor.poll():
            time.sleep(0.02)
            if killed < kills and time.monotonic() > due and len(supervisor.running()) > 1:
                killed += supervisor.kill(chance.choice(supervisor.running()))
                due = time.monotonic() + every
            if lost < losses and time.monotonic() > loss_due and servers:
                os.kill(servers.pop(), signal.SIGKILL)
                lost, loss_due = lost + 1, time.monotonic() + 2 * every
        seconds = time.monotonic() - began
    assert supervisor.exit_code == 0, supervisor.exit_code
    return seconds, killed, lost


def _decided(folder: Path) -> bool:
    return any('"t":"decision"' in path.read_text() for path in folder.glob("rank*.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two kills, at least")
    parser.add_argument("--losses", type=int, default=0, help="how often the store is killed")
    parser.add_argument("--cuts", type=float, default=0.0, help="the probability that a rank's connection is cut in an iteration")
    parser.add_argument("--pause", type=float, default=0.03, help="seconds that a step lasts at most")
    parser.add_argument("--record", type=Path, help="keep the recording here")
    given = parser.parse_args()
    if given.rank:
        rank(given.iterations, given.cuts, given.pause)
        return
    folder = given.record or Path(tempfile.mkdtemp(prefix="coxless-recorded-"))
    told = ["--cuts", str(given.cuts), "--pause", str(given.pause)]
    seconds, killed, lost = chaos(folder, given.ranks, given.iterations, given.kills, given.every, given.losses, told)
    lines = sum(len(path.read_bytes().splitlines()) for path in folder.glob("*.jsonl"))
    began = time.perf_counter()
    verdict = validate(folder)
    took = time.perf_counter() - began
    print(
        f"{given.ranks} ranks, {given.iterations} iterations, {killed} kills, {lost} store losses: {seconds:.1f} s, {lines} lines"
    )
    print(
        f"{verdict.word.upper() if verdict.code else verdict.word} in {took:.1f} s ({took / lines * 1e6:.0f} µs a line), "
        f"{verdict.steps_back} steps back, {verdict.wrong_suspicions} wrong suspicions"
    )
    sys.exit(verdict.code)


if __name__ == "__main__":
    main()

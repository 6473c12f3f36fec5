"""A recorded chaos run, and how long its validation takes: `python -m bench.recorded`.

The ranks train nothing: they vote, now and then against an iteration, and one of them after another is killed and started again.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import coxless
from coxless.supervisor import Exited, Supervisor
from coxless_traces.validation import validate


def rank(iterations: int) -> None:
    chance = random.Random(os.getpid())
    with coxless.join(heartbeat_interval=timedelta(seconds=0.3), heartbeat_timeout=timedelta(seconds=3)) as crew:
        for _ in crew.iterations(until=iterations):
            if chance.random() < 0.03:
                crew.vote(False)
            time.sleep(0.03 * chance.random())


def again(exited: Exited) -> timedelta | None:
    """Every killed rank comes back at once; one that failed by itself does not, so that it is seen."""
    return timedelta(0) if exited.signal is not None else None


def chaos(folder: Path, ranks: int, iterations: int, kills: int, every: float) -> tuple[float, int]:
    """How long the run took from the first decision on, and how many ranks were killed."""
    command = [sys.executable, "-m", "bench.recorded", "--rank", "--iterations", str(iterations)]
    chance, killed = random.Random(1), 0
    with Supervisor(
        command, ranks=ranks, restart=again, max_restarts=kills, environment={"COXLESS_TRACE": str(folder)}
    ) as supervisor:
        while not _decided(folder):
            time.sleep(0.05)
            assert not supervisor.poll(), "nothing was decided"
        began = due = time.monotonic()
        while not supervisor.poll():
            time.sleep(0.02)
            if killed < kills and time.monotonic() > due and len(supervisor.running()) > 1:
                killed += supervisor.kill(chance.choice(supervisor.running()))
                due = time.monotonic() + every
        seconds = time.monotonic() - began
    assert supervisor.exit_code == 0, supervisor.exit_code
    return seconds, killed


def _decided(folder: Path) -> bool:
    return any('"t":"decision"' in path.read_text() for path in folder.glob("rank*.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two kills, at least")
    parser.add_argument("--record", type=Path, help="keep the recording here")
    given = parser.parse_args()
    if given.rank:
        rank(given.iterations)
        return
    folder = given.record or Path(tempfile.mkdtemp(prefix="coxless-recorded-"))
    seconds, killed = chaos(folder, given.ranks, given.iterations, given.kills, given.every)
    lines = sum(len(path.read_bytes().splitlines()) for path in folder.glob("*.jsonl"))
    began = time.perf_counter()
    verdict = validate(folder)
    took = time.perf_counter() - began
    print(f"{given.ranks} ranks, {given.iterations} iterations, {killed} kills: {seconds:.1f} s, {lines} lines")
    print(
        f"{'admitted' if verdict.holds else 'REJECTED'} in {took:.1f} s ({took / lines * 1e6:.0f} µs a line), "
        f"{verdict.steps_back} steps back, {verdict.wrong_suspicions} wrong suspicions"
    )
    sys.exit(0 if verdict.holds else 1)


if __name__ == "__main__":
    main()

"""Connections are cut all the time, at random, through a long run of three ranks: they agree on every iteration, and the model admits it."""

import random
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

import coxless
from coxless.server import start_server
from coxless_traces.proxy import CUTS, Point, Proxy
from coxless_traces.validation import validate

from .crews import in_threads
from .cut_run import TIMING, Life, assert_agreed, finish

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

RANKS = 3
LAST = 200
STEP = 0.01
"""A step lasts up to so long (s)."""
PAUSE = 0.3
"""Between two cuts lies this much time (s) on average."""


def cut_at_random(proxy: Proxy, seed: int, over: threading.Event) -> int:
    """Until it is over: cut one connection, or all, by FIN or RST; or all, and one of the new ones again at a point of what it says."""
    choice = random.Random(seed)
    cuts = 0
    while not over.wait(choice.expovariate(1 / PAUSE)):
        reset = choice.random() < 0.5
        match choice.randrange(4):
            case 0:
                proxy.cut_all(reset=reset)
            case 1:
                # Lines 0 and 1 after it are the two of a rank, for the protocol and for heartbeats.
                proxy.begin(Point(choice.randrange(RANKS), choice.randrange(2), choice.randrange(2, 12), choice.choice(CUTS)))
            case _:
                proxy.cut(1, reset=reset, seed=choice.randrange(1 << 30))
        cuts += 1
    return cuts


@pytest.mark.parametrize("seed", [1])
def test_a_long_run_with_random_cuts_loses_and_repeats_nothing(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COXLESS_TRACE", str(tmp_path))
    timing = {**TIMING, "heartbeat_timeout": timedelta(seconds=30)}
    over = threading.Event()
    cuts: list[int] = []

    with start_server() as server, Proxy(server.address, doors=RANKS, listen=True) as proxy:

        def body(rank: int) -> Life:
            chance = random.Random(f"{seed}.{rank}")
            life = Life([], set())
            with coxless.join(proxy.addresses[rank], rank=rank, world_size=RANKS, **timing) as crew:
                for iteration in crew.iterations(until=LAST):
                    life.seen.append(iteration)
                    time.sleep(chance.random() * STEP)
                    if chance.random() < 0.05:
                        life.failed.add(iteration.number)
                        crew.vote(False)
                finish(life, crew)
            return life

        cutter = threading.Thread(target=lambda: cuts.append(cut_at_random(proxy, seed, over)), daemon=True)
        cutter.start()
        began = time.monotonic()
        try:
            lives = in_threads(RANKS, body)
        finally:
            over.set()
            cutter.join(30)
        lasted = time.monotonic() - began
    assert [life.seen[-1].number for life in lives] == [LAST + 1] * RANKS
    assert_agreed(lives, LAST)
    assert all(one.world_size == RANKS for life in lives for one in life.seen)
    assert cuts[0] >= 5
    began = time.monotonic()
    verdict = validate(tmp_path)
    print(f"seed {seed}: {LAST} iterations, {cuts[0]} times cut, {lasted:.1f} s; validated in {time.monotonic() - began:.1f} s")
    assert verdict.holds, (verdict.why, verdict.text, verdict.unexplained, verdict.flaws, verdict.broken)

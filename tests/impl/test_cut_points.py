"""The connection is cut once, at every point of every request that two ranks send in a short run: joining, founding, a fast path, a
failed vote, a leave, a rejoin, clean-up and heartbeats; a run for each point. Whatever is lost, the ranks agree, and go on to the end,
and the model admits the recording.

Which requests there are is seen in runs that are not cut. A usual test run takes a sample of the points of each way to cut;
`COXLESS_CUTS=all` takes all.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import coxless
from coxless.server import start_server
from coxless_traces.proxy import CUTS, Point, Proxy
from coxless_traces.validation import validate

from .cut_run import assert_agreed, run

pytestmark = [pytest.mark.processes, pytest.mark.timeout(3600)]

ALL = os.environ.get("COXLESS_CUTS") == "all"
AFAR = {"": 0.002, "compare_set global_iteration_counter": 0.02}
"""Rank 1 is so much (s) farther from the store, and so much slower when ranks compete, so that runs are alike."""
SAMPLED = 5
"""So many points of each way are taken in a usual test run."""
LOOKS = 3
"""So many runs are not cut. A point is named by its operation, and a request that each of them has sent belongs to the run; one that only
some have sent (a heartbeat more, or what the other rank says who has won a race) may not come again."""
TRIES = 10
"""So many runs are made at a point that does not come."""


class Behind(NamedTuple):
    proxy: Proxy
    direct: Any
    """A client of the store behind the proxy."""
    points: "Counter[Point]"
    """In how many of the looks each was seen, in the order of the run."""


@pytest.fixture(scope="module")
def behind() -> Iterator[Behind]:
    with start_server() as server, Proxy(server.address, doors=2, delays=[{}, AFAR], listen=True) as proxy:
        direct = coxless.connect(server.address)
        points: Counter[Point] = Counter()
        for _ in range(LOOKS):
            proxy.begin()
            assert_agreed(run(proxy, direct))
            points.update(Point(each.door, each.line, each.name, how) for each, ways in proxy.said() for how in ways)
        yield Behind(proxy, direct, points)


@pytest.mark.parametrize("how", CUTS)
def test_whatever_is_cut_the_ranks_agree_and_go_on(
    how: str, behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, direct, seen = behind
    every = [point for point in seen if point.how == how]
    # From the middle of each stretch of so many, so that the first request of all is not the one that every way takes.
    stride = 1 if ALL else max(1, len(every) // SAMPLED)
    points = every[stride // 2 :: stride]
    missed, failures, runs = [], [], 0
    for number, point in enumerate(points):
        for attempt in range(TRIES):
            folder = tmp_path / f"{number}-{attempt}"
            monkeypatch.setenv("COXLESS_TRACE", str(folder))
            proxy.begin(point)
            runs += 1
            try:
                assert_agreed(run(proxy, direct))
                verdict = validate(folder)
                assert verdict.holds, (verdict.why, verdict.text, verdict.unexplained, verdict.flaws, verdict.broken)
            except (AssertionError, coxless.CoxlessError) as error:
                failures.append(f"{point}, {proxy.done()}, {folder}: {type(error).__name__}: {error}")
            if proxy.done():
                break
        else:
            missed.append(point)
    print(
        f"{how}: {len(points)} of {len(every)} points in {runs} runs; {len(failures)} runs failed, {len(missed)} points did not come"
    )
    for point in missed:
        print(f"  did not come, in {seen[point]} of {LOOKS} looks: {point}")
    assert failures == []
    assert [point for point in missed if seen[point] == LOOKS] == []

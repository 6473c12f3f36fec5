"""No decision depends on the time of day: nothing reads it but two named places, and ranks whose clocks are hours apart and jump go on as
any others. (Time that passes is measured by each process with its own monotonic clock, and never compared with another's.)"""

import ast
import signal
import time
from pathlib import Path

import pytest

import coxless
from coxless import keys

from .crews import SILENT, at, starting, step

IMPL = Path(coxless.__file__).parent

ALLOWED = {
    ("housekeeping.py", "_beat_if_due"): "a label in the heartbeat: only people read it",
    ("as_drawn.py", "perform"): "the original diagram's protocol, kept to show this very flaw",
}
OF_DAY = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.asctime", "time.strftime", "time.mktime"),
    *("time.clock_gettime", "time.clock_gettime_ns", "datetime.datetime", "datetime.date", "datetime.now", "datetime.utcnow"),
    *("datetime.today", "date.today"),
}
FILE_TIMES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "st_atime_ns", "getmtime", "getctime", "getatime"}


def reads_of_the_time_of_day(source: str) -> list[str]:
    """The function in which each stands; "" for the module."""
    found: list[str] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Attribute) and (ast.unparse(node) in OF_DAY or node.attr in {*FILE_TIMES, "wall_clock"}):
            found.append(function)
        if isinstance(node, ast.ImportFrom):
            found.extend(function for name in node.names if f"{node.module}.{name.name}" in OF_DAY or name.name in FILE_TIMES)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    return time.time() - beat > 30",
        "def f():\n    now = time.time\n    return now()",
        "def f():\n    from time import time",
        "def f():\n    return datetime.datetime.now()",
        "def f():\n    from datetime import datetime",
        "def f():\n    return path.stat().st_mtime",
        "def f():\n    return beat.wall_clock",
        "def f():\n    return time.clock_gettime(time.CLOCK_REALTIME)",
    ],
)
def test_a_read_of_the_time_of_day_is_found(source: str) -> None:
    assert reads_of_the_time_of_day(source) == ["f"]


def test_durations_and_the_monotonic_clock_are_no_time_of_day() -> None:
    assert not reads_of_the_time_of_day(
        "from datetime import timedelta\nnow = time.monotonic()\nlater = now + time.monotonic_ns()"
    )


def test_the_library_reads_the_time_of_day_in_two_places_which_decide_nothing() -> None:
    found = {
        (str(path.relative_to(IMPL)), function)
        for path in IMPL.rglob("*.py")
        for function in reads_of_the_time_of_day(path.read_text(encoding="utf-8"))
    }
    assert found == {*ALLOWED, ("records.py", "__str__")}, "and where the label is written out"


# Python runs it before anything else. (Nothing below Python looks at the time of day here: torch's waits are on a steady clock.)
SITECUSTOMIZE = """
import os, time
hours, calls, real, real_ns = float(os.environ["HOURS"]), 0, time.time, time.time_ns

def jump():
    global calls
    calls += 1
    return 3600 * hours * (1 if calls % 2 else -2)

time.time = lambda: real() + jump()
time.time_ns = lambda: real_ns() + int(1e9 * jump())
"""
HOURS = (-5, 0.5, 7)


@pytest.mark.processes
def test_clocks_that_are_hours_apart_and_jump_change_nothing(address: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    store = coxless.connect(address)
    with starting(address) as start:
        ranks = [
            start(rank, environment={"PYTHONPATH": f"{tmp_path}:{IMPL.parent}", "HOURS": str(HOURS[rank])}) for rank in range(3)
        ]
        for rank in ranks:
            rank.until(at(1))
        seen: set[int] = set()
        began, number = time.monotonic(), 1
        # Suspected neither at once nor after a heartbeat timeout; and until each of the wrong hours has been seen.
        while time.monotonic() < began + SILENT + 1 or not seen >= {-5, 10, 7, -14}:
            assert time.monotonic() < began + 60, "their clocks do not jump"
            views = step(ranks, number := number + 1)
            assert [(view["ranks"], view["committed"], view["rejoined"]) for view in views] == [([0, 1, 2], True, False)] * 3
            seen |= {hours_off(store.get(f"{keys.heartbeat('')}{view['member']}")) for view in views}
            time.sleep(0.1)

        ranks[2].signal(signal.SIGKILL)
        killed = time.monotonic()
        views = step(ranks[:2], number + 1)
        assert [view["ranks"] for view in views] == [[0, 1]] * 2
        assert SILENT - 0.5 < views[0]["at"] - killed < SILENT + 10, "missed by its heartbeats, no sooner and not much later"


def hours_off(beat: bytes) -> int:
    return round((float(beat.split()[2]) - time.time()) / 3600)

"""Compare the Python model with its independent transcription for Spin, hardened.pml.

    python model/promela/compare.py             the bounds that CI runs
    python model/promela/compare.py --large     larger ones as well
    python model/promela/compare.py --install   install spin and gcc first, by apt-get

Both are explored breadth first, in full, without symmetry or any other reduction, at the same bounds. What has to be equal: the
number of states, of transitions, the depth, the number of dead ends and the verdict; and for mutants the length of the shortest
trace to the property that kills them.

A *dead end* is a state in which nothing at all can happen. Each side derives it from its own successors: Spin by its `timeout`,
which holds when no option of any process does, and the Python engine by asking whether the specification offers an action.

Spin counts some things differently, and the table shows them after this correction: it counts the initial state as one
transition, and here each `timeout` as one; and the failing step of an assertion is not in the depth at which it reports it.

Exit codes: 0 all equal, 1 a difference, 2 the command was wrong, 3 spin or gcc is not installed.
"""

import argparse
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import NamedTuple

from coxless_model.environment import Hardened, hardened
from coxless_model.explore import explore
from coxless_model.machine import Action
from coxless_model.mutants import Mutant, by_name
from coxless_model.results import Verdict

MODEL = Path(__file__).with_name("hardened.pml")
TOOLS = ("spin", "gcc")
INSTALL = "apt-get install spin gcc"
WATCH = {name: 1 << bit for bit, name in enumerate(("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "L2", "L3"))}
"""The bits by which hardened.pml knows the properties."""


class Bounds(NamedTuple):
    """Two ranks, so many iterations, and what may happen to them."""

    iterations: int
    budgets: Mapping[str, int]
    min_ranks: int = 1
    lag: int = 99

    def __str__(self) -> str:
        changed = {"min_ranks": (self.min_ranks, 1), "lag": (self.lag, 99)}
        settings = [f"{name}={value}" for name, (value, usual) in changed.items() if value != usual]
        return " ".join([f"2x{self.iterations}", *(f"{name}={value}" for name, value in self.budgets.items()), *settings])

    def system(self, missing: tuple[str, ...] = ()) -> Hardened:
        return hardened(2, self.iterations, self.min_ranks, self.lag, missing, **self.budgets)

    @property
    def macros(self) -> dict[str, int]:
        settings = {"iterations": self.iterations, "min_ranks": self.min_ranks, "lag": self.lag}
        return {name.upper(): value for name, value in {**settings, **self.budgets}.items()}


QUICK = (
    Bounds(1, {"crashes": 1, "restarts": 1, "join_timeouts": 2}),
    Bounds(2, {}),
    Bounds(2, {"crashes": 1, "dead_marks": 1, "leaves": 1}, lag=1),
    Bounds(2, {"crashes": 1, "suspicions": 1, "failed_votes": 1}, min_ranks=2),
    Bounds(2, {"lost_replies": 2}),
    Bounds(2, {"crashes": 1, "restarts": 1, "suspicions": 1, "failed_votes": 1}, lag=0),
    Bounds(3, {"suspicions": 1, "lost_replies": 1}, lag=0),
)
EVERYTHING = {"crashes": 1, "restarts": 1, "suspicions": 1, "failed_votes": 1, "lost_replies": 1}
LARGE = (
    Bounds(2, {"crashes": 1, "restarts": 1, "join_timeouts": 1}),
    Bounds(2, {"crashes": 1, "restarts": 1, "suspicions": 1, "failed_votes": 1}),
    Bounds(2, {"crashes": 2, "restarts": 2}, lag=0),
    Bounds(2, EVERYTHING, lag=0),
    Bounds(3, {"crashes": 1, "restarts": 1, "suspicions": 1, "failed_votes": 1}, lag=0),
)
MUTANTS = (
    "compare_set",
    "founding",
    "min_ranks",
    "add_once",
    "failure_attention",
    "look_again",
    "heartbeats",
    "drop_state",
    "membership",
    "clean_up",
)
MORE_MUTANTS = (
    "fresh_count",
    "timeout_decides_nothing",
    "joiner_attention",
    "attention_first",
    "look_after_full",
    "fresh_arrived",
    "votes",
    "somebody_voted",
    "spare_the_next",
)


class Explored(NamedTuple):
    states: int
    transitions: int
    depth: int
    dead_ends: int
    verdict: str


class NotInstalled(Exception):
    """Spin, or the compiler that it needs, is missing."""


# --- The Python model ---------------------------------------------------------------------------------------------------


class AnythingPromised(Hardened):
    """The hardened protocol with every action promised to happen: so only a state without any is stuck, as it is for Spin."""

    def fair(self, action: Action) -> Hashable | None:
        return action.name


def python(bounds: Bounds) -> Explored:
    result = explore(AnythingPromised(*bounds.system()))
    return Explored(result.states, result.transitions, result.depth, result.stuck, str(result.verdict))


def python_trace(mutant: Mutant) -> int | None:
    """The length of the shortest trace to the property that kills the mutant."""
    result = explore(mutant.system, properties=(mutant.killed_by,))
    if result.verdict is not Verdict.VIOLATED:
        return None
    return len(result.counterexamples[0].trace.actions)


# --- Spin ---------------------------------------------------------------------------------------------------------------


class Pan(NamedTuple):
    """What the verifier that Spin generates has printed."""

    states: int
    transitions: int
    depth: int
    dead_ends: int
    """Counted where they were asked for: by a step that Spin takes in them only, and that leads back to where it is."""
    violation: str
    """The assertion that failed; empty if none did."""
    violation_depth: int
    seconds: float = 0.0
    """CPU time of the search itself, without generating and compiling the verifier."""


def pan(macros: Mapping[str, int | None], optimise: str = "-O0") -> Pan:
    """Generate the verifier, compile it, and run it: breadth first, without partial-order reduction, every state in full."""
    if not installed():
        raise NotInstalled(f"spin is not installed, or gcc, which it needs: {INSTALL}")
    defines = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in macros.items()]
    with tempfile.TemporaryDirectory() as place:

        def run(*command: str) -> str:
            return subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout

        run("spin", "-a", *defines, str(MODEL))
        # Not optimised unless asked: for spaces of this size compiling takes longer than searching.
        run("gcc", "-w", optimise, "-DSAFETY", "-DBFS", "-DNOREDUCE", "-DMEMLIM=6000", "-o", "pan", "pan.c")
        # -E: a dead end is no error by itself; where it is one, the option with `timeout` says so.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = read_pan(run("./pan", "-E", "-w22"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found._replace(seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def read_pan(output: str) -> Pan:
    def number(pattern: str) -> int:
        found = re.search(pattern, output)
        if not found:
            raise ValueError(f"the verifier did not say {pattern!r}; it said:\n{output}")
        return int(found[1])

    failed = re.search(r"^pan:\d+: (.*) \(at depth (\d+)\)$", output, re.MULTILINE)
    if "Search not completed" in output and not failed:
        raise ValueError(f"the search was not completed:\n{output}")
    return Pan(
        number(r"(\d+) states, stored"),
        number(r"(\d+) transitions \(= stored\+matched\)") - 1,  # the initial state is no transition
        number(r"depth reached (\d+)"),
        number(r"(\d+) dead ends") if "dead ends" in output else 0,
        failed[1] if failed else "",
        int(failed[2]) if failed else 0,
    )


def spin(bounds: Bounds) -> Explored:
    found = pan({**bounds.macros, "DEAD_ENDS": None})
    verdict = Verdict.VIOLATED if found.violation else Verdict.HOLDS
    return Explored(found.states, found.transitions - found.dead_ends, found.depth, found.dead_ends, str(verdict))


def spin_trace(mutant: Mutant) -> int | None:
    bounds = Bounds(mutant.iterations, mutant.budgets, mutant.min_ranks)
    found = pan({**bounds.macros, f"WITHOUT_{mutant.guard}": None, "WATCH": WATCH[mutant.killed_by]})
    if not found.violation:
        return None
    if f"{WATCH[mutant.killed_by]}&" not in found.violation:
        raise ValueError(f"{mutant.guard}: came to what hardened.pml does not cover: {found.violation}")
    return found.violation_depth + 1  # the step that fails


# --- The comparison -----------------------------------------------------------------------------------------------------


def installed() -> bool:
    return all(shutil.which(tool) for tool in TOOLS)


def compare_bounds(bounds: tuple[Bounds, ...]) -> bool:
    """Print a line for each side of each comparison; whether all were equal."""
    width = max(len(str(each)) for each in bounds)
    equal = True
    print(f"{'bounds':{width}}  {'':6} {'states':>9} {'transitions':>11} {'depth':>5} {'dead ends':>9}  verdict   seconds")
    for each in bounds:
        results = []
        for name, side in (("python", python), ("spin", spin)):
            started = time.monotonic()
            one = side(each)
            results.append(one)
            label = str(each) if name == "python" else ""
            numbers = f"{one.states:9} {one.transitions:11} {one.depth:5} {one.dead_ends:9}  {one.verdict:9}"
            print(f"{label:{width}}  {name:6} {numbers} {time.monotonic() - started:7.1f}", end="", flush=True)
            print(f"  {told(results[0] == one)}" if name == "spin" else "")
        equal = equal and results[0] == results[1]
    return equal


def compare_mutants(guards: tuple[str, ...]) -> bool:
    width = max(map(len, guards))
    equal = True
    print(f"{'mutant: without':{max(width, 15)}}  breaks  shortest trace: python  spin")
    for guard in guards:
        mutant = by_name(guard)
        lengths = python_trace(mutant), spin_trace(mutant)
        same = lengths[0] == lengths[1] is not None
        equal = equal and same
        print(f"{guard:{max(width, 15)}}  {mutant.killed_by:6}  {lengths[0]!s:>22} {lengths[1]!s:>5}  {told(same)}", flush=True)
    return equal


def told(same: bool) -> str:
    return "equal" if same else "DIFFERENT"


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="larger bounds and more mutants (some minutes)")
    parser.add_argument("--install", action="store_true", help="install spin and gcc by apt-get if they are missing")
    options = parser.parse_args()
    if options.install and not installed():
        subprocess.run(["apt-get", "update"], check=True)
        subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", "spin", "gcc", "libc6-dev"], check=True)
    if not installed():
        print(f"spin is not installed, or gcc, which it needs: {INSTALL} (or give --install)", file=sys.stderr)
        return 3
    started = time.monotonic()
    equal = compare_bounds(QUICK + LARGE if options.large else QUICK)
    print()
    equal = compare_mutants(MUTANTS + MORE_MUTANTS if options.large else MUTANTS) and equal
    print()
    print("Spin's numbers are corrected: a transition less for the initial state and for each dead end (a step back to itself),")
    print("and a step more in a trace (the one that fails).")
    print(f"{'All equal' if equal else 'There are differences'}, after {time.monotonic() - started:.0f} s.")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())

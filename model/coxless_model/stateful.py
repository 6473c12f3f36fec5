"""The protocols as a Hypothesis state machine: a rule for each step of a rank and each thing that the environment does, an
invariant for each property.

The exhaustive search finds shorter counterexamples, and more surely. What Hypothesis adds is shrinking for bounds that are
out of reach of a search, and a form in which a real store can be driven beside the model. A failure it shrinks to is written
as a trace file, and the message names the command that replays it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from coxless_model.itf import trace_file, write
from coxless_model.machine import Action, Invariant, State, System, expected_actions, successors
from coxless_model.results import Trace
from coxless_model.simulate import simulate

CI = settings(
    max_examples=25,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=tuple(HealthCheck),
)
"""The same every time, nothing kept between runs, the failure printed as a blob that can be pasted."""
LONG = settings(
    CI, max_examples=5_000, stateful_step_count=300, derandomize=False, database=DirectoryBasedExampleDatabase(".hypothesis")
)
"""By hand: different every time, and failures are kept for the next run. `pytest tests/model/test_stateful.py --hypothesis-profile long`"""
FIND = settings(CI, max_examples=300, phases=(Phase.generate, Phase.shrink))
"""For what is known to break: go on until it does, and do not explain afterwards which draws mattered."""
PROFILES = {"ci": CI, "long": LONG}


class Broken(AssertionError):
    """A property does not hold after the steps that Hypothesis chose."""


def names(system: System) -> tuple[str, ...]:
    """The names of the actions that the system takes: those that it says one should see, else those that random walks see. Others, if
    there are any, share a rule."""
    return expected_actions(system) or tuple(simulate(system, seed=0, walks=200, length=200, properties=()).taken)


def state_machine(system: System, folder: Path) -> type[RuleBasedStateMachine]:
    """The state machine of a system. Failures are written into the folder."""
    known = names(system)
    members: dict[str, Any] = {"system": system, "folder": folder, "known": frozenset(known)}
    members |= {name: _rule(name) for name in known}
    members["another_step"] = _rule(None)
    members |= {f"property_{each.id}": _invariant(each) for each in system.invariants}
    return type(f"{system.name} as a state machine", (_Walk,), members)


def check(system: System, profile: settings, folder: Path) -> None:
    """Let Hypothesis look for a run that breaks a property; Broken, with the shortest it shrank to, if there is one."""
    run_state_machine_as_test(state_machine(system, folder), settings=profile)


class _Walk(RuleBasedStateMachine):
    """Where the run has come to, and what is enabled there."""

    system: System
    folder: Path
    known: frozenset[str]

    def __init__(self) -> None:
        super().__init__()
        self.states: list[State] = [self.system.initial()]
        self.actions: list[Action] = []
        self.offered: dict[str | None, list[tuple[Action, State]]] = {}
        self.look()

    def look(self) -> None:
        self.offered = {}
        for action, after in successors(self.system, self.states[-1]):
            name = action.name if action.name in self.known else None
            self.offered.setdefault(name, []).append((action, after))

    @precondition(lambda self: not self.offered)
    @rule()
    def rest(self) -> None:
        """Nothing can happen any more."""

    def take(self, name: str | None, which: int) -> None:
        options = self.offered[name]
        action, after = options[which % len(options)]
        self.actions.append(action)
        self.states.append(after)
        self.look()

    def broken(self, name: str, wrong: str) -> Broken:
        """Write the run as a trace. Hypothesis ends with the shortest failure, so that one stays."""
        trace = Trace(tuple(self.states), tuple(self.actions))
        path = self.folder / f"{self.system.name.replace(' ', '_').replace(',', '')}-{name}.itf.json"
        prose = "Found by random walking, and shrunk; it need not be the shortest."
        write(path, trace_file(self.system, trace, title=f"{name} is broken", prose=prose, broken=name, wrong=wrong))
        return Broken(f"{name} is broken after {len(self.actions)} steps: {wrong}. To replay: coxless replay {path}")


def _rule(name: str | None) -> Callable[..., None]:
    def step(self: _Walk, which: int) -> None:
        self.take(name, which)

    step.__name__ = name or "another_step"
    enabled = precondition(lambda self: name in self.offered)
    taken: Callable[..., None] = rule(which=st.integers(0, 15))(enabled(step))
    return taken


def _invariant(each: Invariant) -> Callable[..., None]:
    def holds(self: _Walk) -> None:
        wrong = each.check(self.states[-1])
        if wrong is not None:
            raise self.broken(each.id, wrong)

    holds.__name__ = f"property_{each.id}"
    checked: Callable[..., None] = invariant()(holds)
    return checked

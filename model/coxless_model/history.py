"""Literal histories: a run of a system, taken step by step by name."""

from coxless_model.machine import Action, State, System, successors
from coxless_model.results import Trace

UNWANTED = ("crash", "restart", "second_process", "leave", "go_stale", "join_timeout")


class NoSuchStep(Exception):
    """The system cannot do what the history says; the message lists what it could do."""


class History:
    def __init__(self, system: System) -> None:
        self.system = system
        self.states: list[State] = [system.initial()]
        self.actions: list[Action] = []

    @property
    def state(self) -> State:
        return self.states[-1]

    @property
    def trace(self) -> Trace:
        return Trace(tuple(self.states), tuple(self.actions))

    def do(self, rank: int, name: str, note: str = "") -> None:
        """The rank's step of that name; with that in its note, or nothing."""
        offered = []
        for action, after in successors(self.system, self.state):
            offered.append((action.rank, action.name, action.note))
            if (action.rank, action.name) == (rank, name) and (note in action.note if note else not action.note):
                self._take(action, after)
                return
        raise NoSuchStep(f"{rank} cannot {name} {note!r} here; offered: {offered}")

    def until(self, rank: int, at: str, process: int = 0) -> None:
        """Step after step of the rank's own, and cleaning up where it can, until it stands at that step. process: 1 is the newer of two."""
        for _ in range(60):
            if self.state.ranks[rank].processes[process].at == at:
                return
            steps = [
                (action, after)
                for action, after in successors(self.system, self.state)
                if action.rank == rank
                and ("second process" in action.note) == (process == 1)
                and action.name not in UNWANTED
                and "wrong suspicion" not in action.note
            ]
            self._take(*next((step for step in steps if step[0].name == "clean_up"), steps[0]))
        raise NoSuchStep(f"rank {rank} does not come to {at}: it stands at {self.state.ranks[rank].processes[process].at}")

    def _take(self, action: Action, after: State) -> None:
        self.actions.append(action)
        self.states.append(after)

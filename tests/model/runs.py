"""Literal histories: a run of a system, taken step by step by name."""

from coxless_model.machine import State, System, successors

UNWANTED = ("crash", "restart", "second_process", "leave", "go_stale", "join_timeout")


class Run:
    def __init__(self, system: System) -> None:
        self.system = system
        self.state: State = system.initial()

    def do(self, rank: int, name: str, note: str = "") -> None:
        """The rank's step of that name; with that in its note, or nothing."""
        offered = []
        for action, after in successors(self.system, self.state):
            offered.append((action.rank, action.name, action.note))
            if (action.rank, action.name) == (rank, name) and (note in action.note if note else not action.note):
                self.state = after
                return
        raise AssertionError(f"{rank} cannot {name} {note!r} here; offered: {offered}")

    def until(self, rank: int, at: str) -> None:
        """Step after step of the rank's own, and cleaning up where it can, until it stands at that step."""
        for _ in range(60):
            if self.state.ranks[rank].processes[0].at == at:
                return
            steps = [
                (action, after)
                for action, after in successors(self.system, self.state)
                if action.rank == rank and action.name not in UNWANTED and "wrong suspicion" not in action.note
            ]
            _, self.state = next((step for step in steps if step[0].name == "clean_up"), steps[0])
        raise AssertionError(f"rank {rank} does not come to {at}: it stands at {self.state.ranks[rank].processes[0].at}")

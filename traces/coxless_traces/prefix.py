"""The explained part of a rejected recording as a run of the model, from its beginning, that `coxless replay` takes.

The search knows the members by the nonces that they drew in truth; the model draws its own. So the run is executed once more on the model
as it is checked, each action found by what it is there. Deletions that the model leaves out (sweeps) are left out; where the model cannot
follow any more the trace ends, and says so.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from coxless_model import itf
from coxless_model.environment import Budgets, Hardened
from coxless_model.machine import Action, State, successors
from coxless_model.process import RUN_OVER, Setting
from coxless_model.records import Member, Record
from coxless_model.results import Trace

from .search import KEPT, Search

ENOUGH = 1_000_000


def prefix_of(search: Search, title: str) -> itf.TraceFile:
    setting = search.recorded.system.setting._replace(iterations=ENOUGH, lag=99)
    wide = Hardened(setting, Budgets(*(ENOUGH for _ in Budgets._fields))._replace(clock_skews=0), beyond=True)
    translated = _Translation(wide)
    actions = [action for step in search.taken for action in step]
    end = translated.follow(actions)
    spent = translated.state.shared.budgets
    budgets = Budgets(*(ENOUGH - left if name != "clock_skews" else 0 for name, left in spent._asdict().items()))
    reached = max((p.k for rank in translated.state.ranks for p in rank.processes if p.record is not None), default=0)
    system = Hardened(Setting(setting.ranks, setting.min_ranks, reached + 2), budgets, beyond=True)
    states, done = _again(system, translated.actions)
    prose = f"The longest prefix of the recording that the model explains: {len(done)} steps."
    if end is not None:
        prose += f" The model cannot follow it further than to {end.name} of rank {end.rank} in this form."
    elif len(search.taken) >= KEPT:
        prose += " It goes on for longer than a trace is written."
    return itf.trace_file(system, Trace(states, done), title=title, prose=prose)


def _again(system: Hardened, actions: Iterable[Action]) -> tuple[tuple[State, ...], tuple[Action, ...]]:
    """The same run within the bounds that it needs."""
    state = system.initial()
    states, done = [state], []
    for action in actions:
        after = next((after for candidate, after in successors(system, state) if candidate == action), None)
        if after is None:
            break
        state = after
        states.append(state)
        done.append(action)
    return tuple(states), tuple(done)


class _Translation:
    def __init__(self, system: Hardened) -> None:
        self.system = system
        self.state = system.initial()
        self.actions: list[Action] = []
        self.members: dict[Member, Member] = {}
        self.generations: dict[int, int] = {}

    def follow(self, actions: Iterable[Action]) -> Action | None:
        """Take them all; the one that the model does not offer, if there is one."""
        for action in actions:
            if not self._follow(action):
                return action
        return None

    def _follow(self, action: Action) -> bool:
        if action.note == "sweep":
            return True
        if action.name == "clean_up":
            return self._clean_up(action)
        if action.name == "leave":
            return self._leave(action)
        if action.name in ("crash", "go_stale") and not self._there(action):
            return True  # it has left, or was told of as dead
        fits = list(self._fits(action))
        if not fits:
            return False
        self._take(*fits[0])
        return True

    def _take(self, action: Action, after: State) -> None:
        self.state = after
        self.actions.append(action)

    def _fits(self, action: Action) -> Iterator[tuple[Action, State]]:
        drawing = action.name in ("take_incarnation", "renew_incarnation")
        result, op = self._named(action.result), self._named(action.op)
        for candidate, after in successors(self.system, self.state):
            if (candidate.rank, candidate.name) != (action.rank, action.name):
                continue
            if action.name == "read_heartbeat":
                fits = candidate.op == op and (candidate.result == "beating") == (result == "beating")
                fits = fits and "lost" not in candidate.note and _second(candidate) == _second(action)
            elif action.name == "create_register" and op is not None:
                drawn = candidate.op[3].generation if candidate.op is not None else 0
                given = action.op[3].generation if action.op is not None else 0
                same = self._named(action.result, {given: drawn}) if isinstance(action.result, Record) else action.result
                fits = candidate.result == same and candidate.note == action.note
                if fits and candidate.result == (candidate.op[3] if candidate.op is not None else None):
                    self.generations[given] = drawn
            else:
                note = _plain(candidate.note) if drawing else candidate.note
                noted = _plain(action.note) if drawing else action.note
                fits = candidate.op == op and candidate.result == result and note == noted
            if fits:
                yield candidate, after

    def _named(self, value: Any, generations: dict[int, int] | None = None) -> Any:
        """The value with the model's own names for members and generations."""
        if isinstance(value, Member):
            return self._member(value)
        if isinstance(value, Record):
            known = {**self.generations, **(generations or {})}
            fields = [self._named(part, generations) for part in value[1:]]
            return Record(known.get(value.generation, value.generation), *fields)
        if isinstance(value, tuple):
            parts = [self._named(part, generations) for part in value]
            if hasattr(value, "_fields"):
                return type(value)(*parts)
            return tuple(sorted(parts)) if parts and hasattr(parts[0], "flag") else tuple(parts)
        return value

    def _member(self, member: Member) -> Member:
        """Members whose number is unique are known by it. After a store loss the nonce tells them apart: the newest process is meant."""
        if member not in self.members:
            taken = set(self.members.values())
            found = [
                p.me
                for p in reversed(self.state.ranks[member.rank].processes)
                if p.me is not None and p.me.number == member.number and p.me not in taken
            ]
            if not found:
                return member
            self.members[member] = found[0]
        return self.members[member]

    def _there(self, action: Action) -> bool:
        if action.name == "go_stale":
            return (self._named(action.result), "fading") in self.state.shared.pulse
        processes = self.state.ranks[action.rank].processes
        place = int(_second(action))
        return place < len(processes) and processes[place].at not in RUN_OVER

    def _clean_up(self, action: Action) -> bool:
        """The model deletes in the order of its queue; what comes before is deleted too."""
        assert action.op is not None
        key = self._named(action.op[1])
        for place, p in enumerate(self.state.ranks[action.rank].processes):
            if key in p.queue:
                return all(self._take_first("clean_up", action.rank, place) for _ in range(p.queue.index(key) + 1))
        return True  # forgotten by the model, as the connection of the training thread broke

    def _leave(self, action: Action) -> bool:
        place = int(_second(action))
        processes = self.state.ranks[action.rank].processes
        if place >= len(processes) or processes[place].at in RUN_OVER:
            return True
        while self.state.ranks[action.rank].processes[place].queue:
            if not self._take_first("clean_up", action.rank, place):
                return False
        if self._take_first("leave", action.rank, place):
            return True
        me = processes[place].me
        if not self._take_first("crash", action.rank, place):
            return False
        return me is None or self._take_first("mark_dead", action.rank, 0)

    def _take_first(self, name: str, rank: int, place: int) -> bool:
        for candidate, after in successors(self.system, self.state):
            if (candidate.rank, candidate.name, _second(candidate)) == (rank, name, bool(place)):
                self._take(candidate, after)
                return True
        return False


def _second(action: Action) -> bool:
    return "second process" in action.note


def _plain(note: str) -> str:
    return ", ".join(part for part in note.split(", ") if part and "nonce" not in part)

"""Lockstep replay: the implementation's own generators, driven in the order of a trace of the model.

Each process of the model has a *replica*: a RankState, the generator that it runs, and a connection of its own. After every
step four things are compared: the operation with its arguments, its reply, the whole contents of the store, and what each
process knows. The first difference raises `Mismatch`, which tells all of it. Nothing here sleeps or reads a clock: suspicion,
patience and the join timeout are answers that the trace gives.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from coxless.errors import SupersededError
from coxless.protocol import ConnectionBroken, Decision, Operation, RankState, advance, enter
from coxless.protocol.operations import Delete, JoinTimedOut, ReadHeartbeat
from coxless.protocol.state import NOBODY, NOTHING
from coxless.records import Flag, Listed, Member, Record
from coxless_model.environment import Hardened, Shared, outcomes
from coxless_model.machine import ENVIRONMENT, Action, State, enabled
from coxless_model.process import Process
from coxless_model.steps import moves
from coxless_model.store import THERE

from . import translation
from .mapping import AT, TRAINING, variants
from .targets import Line, Target

BREAKING = {"reply lost", "not applied", "connection lost"}
UNTOLD = BREAKING | {"not delivered"}
UNPERFORMED = {"not applied", "connection lost", "not delivered", "spared"}


class View(NamedTuple):
    """What one process knows, in the implementation's words; both sides are brought to this form."""

    at: str
    me: Member
    record: Record
    members: tuple[Listed, ...] | None
    member: bool
    flag: str
    signed: bool
    full: bool
    written: tuple[str, ...]
    """Epochs whose lists it wrote at this barrier, in alphabetical order."""
    clean_up: tuple[str, ...]
    """Keys to delete, in alphabetical order: each is deleted on its own, by name."""


class Difference(NamedTuple):
    what: str
    model: object
    implementation: object


class Mismatch(Exception):
    """Model and implementation part at this step."""

    def __init__(self, step: int, action: Action, differences: list[Difference], offered: tuple[Action, ...]) -> None:
        self.step = step
        self.action = action
        self.differences = differences
        self.offered = offered
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"step {self.step}, {told(self.action)}: model and implementation differ"]
        for what, model, implementation in self.differences:
            lines += [f"  {what}:", f"    - model           {model}", f"    + implementation  {implementation}"]
        lines += ["  the model could have gone on with:", *(f"    {told(action)}" for action in self.offered[:20])]
        return "\n".join(lines)


def told(action: Action) -> str:
    """One line for people, in the store's own words."""
    who = "the environment" if action.rank == ENVIRONMENT else f"rank {action.rank}"
    said = f"{who}: {action.name}"
    if action.op is not None:
        issued = translation.operation(action.name, action.op)
        said += f" {action.op[0]}({', '.join(map(str, issued[1:]))})"
        if action.op[0] not in ("set", "append") and not variants(action.note) & UNTOLD:
            said += f" -> {translation.reply(action)}"
    return f"{said} [{action.note}]" if action.note else said


@dataclass(slots=True)
class Replica:
    """One process: alive as long as the trace lets it be."""

    state: RankState
    line: Line
    generator: Generator[Operation, object, Decision] | None = None
    operation: Operation | None = None
    """What the generator stands before; None in its training step, and when it has ended."""
    decision: Decision | None = None
    stopped: bool = False
    join_timeout: bool = False

    def enter(self) -> None:
        self.start(enter(self.state))

    def advance(self, flag: Flag) -> None:
        self.start(advance(self.state, flag))

    def start(self, generator: Generator[Operation, object, Decision]) -> None:
        self.generator = generator
        self._settle(generator, next(generator))

    def resume(self, reply: object) -> None:
        assert self.generator is not None
        self._run(self.generator, reply)

    def break_connection(self, target: Target) -> None:
        """The generator hears of it, and finds a new connection."""
        assert self.generator is not None
        self.line.close()
        self.line = target.open()
        self._run(self.generator, ConnectionBroken())

    def kill(self) -> None:
        self.generator = None
        self.line.close()

    def _run(self, generator: Generator[Operation, object, Decision], reply: object) -> None:
        try:
            operation = generator.throw(reply) if isinstance(reply, ConnectionBroken) else generator.send(reply)
            self._settle(generator, operation)
        except StopIteration as stop:
            self.generator = self.operation = None
            self.decision = stop.value
        except SupersededError:
            self.generator = self.operation = None
            self.stopped = True

    def _settle(self, generator: Generator[Operation, object, Decision], operation: Operation) -> None:
        """Answer the questions that are no operation on the store."""
        while isinstance(operation, JoinTimedOut):
            operation = generator.send(self.join_timeout)
        self.operation = operation

    def view(self) -> View:
        state = self.state
        if self.stopped:
            at = "stopped"
        elif self.operation is None:
            at = "training"
        else:
            at = self.operation.step
        return View(
            at,
            state.me,
            state.record,
            state.members,
            state.is_member,
            state.flag,
            state.signed,
            state.full,
            tuple(sorted(state.written)),
            tuple(sorted(set(state.deletions))),
        )


@translation.by_identity
@lru_cache(maxsize=1 << 15)
def model_view(p: Process) -> View:
    return View(
        "training" if p.at == TRAINING else AT.get(p.at, p.at),
        NOBODY if p.me is None else translation.member(p.me),
        NOTHING if p.record is None else translation.record(p.record),
        None if p.members is None else translation.listed(p.members),
        p.member,
        p.flag,
        p.signed,
        p.full,
        tuple(sorted(map(translation.epoch, p.wrote))),
        tuple(sorted(map(translation.key, p.queue))),
    )


NewReplica = Callable[[RankState, Target], Replica]


def in_this_process(state: RankState, target: Target) -> Replica:
    return Replica(state, target.open())


class Lockstep:
    """A replay in progress, from the model's initial state on."""

    def __init__(self, system: Hardened, target: Target, new_replica: "NewReplica | None" = None) -> None:
        self.system = system
        self.target = target
        self.new_replica: NewReplica = new_replica or in_this_process
        self.steps = 0
        target.clear()
        self._control = target.open()
        state = system.initial()
        self.ranks: list[list[Replica]] = [[self._start(rank)] for rank in range(len(state.ranks))]

    def close(self) -> None:
        for replicas in self.ranks:
            for replica in replicas:
                replica.kill()
        self._control.close()

    def step(self, before: State, action: Action, after: State) -> None:
        """Take the step on this side too. Raises Mismatch."""
        differences = self._take(before, action, after) or self._compare(after)
        if differences:
            raise Mismatch(self.steps + 1, action, differences, enabled(self.system, before))
        self.steps += 1

    # --- taking a step

    def _take(self, before: State, action: Action, after: State) -> list[Difference]:
        shared: Shared = before.shared
        match action.name:
            case "lose_store":
                self.target.clear()
                return []
            case "go_stale":
                return []
            case "mark_dead":
                assert action.op is not None
                self._control.perform(translation.operation("mark_dead", action.op))
                return []
            case "restart" | "second_process":
                self.ranks[action.rank].append(self._start(action.rank))
                return []
        assert action.rank != ENVIRONMENT
        index = 1 if "second process" in action.note else 0
        replicas = self.ranks[action.rank]
        replica = replicas[index]
        process: Process = before.ranks[action.rank].processes[index]
        processes: tuple[Process, ...] = after.ranks[action.rank].processes
        differences: list[Difference] = []
        match action.name:
            case "crash":
                replica.kill()
                del replicas[index]
                return []
            case "join_timeout":
                return []  # an answer from here on
            case "leave":
                assert action.op is not None
                replica.line.perform(translation.operation("leave", action.op))
            case "clean_up":
                differences = self._clean_up(replica, action)
            case _:
                following = processes[index] if len(processes) == len(replicas) else None
                differences = self._take_protocol_step(replica, process, action, following, shared)
        if len(processes) < len(replicas):  # of two processes, one that has ended is forgotten
            differences = differences or self._compare_end(action, shared, process, replica)
            replica.kill()
            del replicas[index]
        return differences

    def _compare_end(self, action: Action, shared: Shared, process: Process, replica: Replica) -> list[Difference]:
        """The state after the step does not hold the process any more: what became of it is asked of the model once more."""
        if action.name == "leave":
            return []
        setting, rank = self.system.setting, action.rank
        note = action.note.removesuffix("second process").removesuffix(", ")
        for move in moves(setting, rank, process):
            for candidate, _, ended in outcomes(setting, rank, shared, process, move):
                if candidate._replace(note=note) == action._replace(note=note) and candidate.note == note:
                    return compare_process(rank, ended, replica)
        raise AssertionError(f"{told(action)} is no step of that process")

    def _take_protocol_step(
        self, replica: Replica, process: Process, action: Action, following: Process | None, shared: Shared
    ) -> list[Difference]:
        assert action.op is not None
        if replica.generator is None:
            flag: Flag = "o" if action.name == "arrive" else action.op[2].flag
            replica.advance(flag)
        wanted = translation.issued(action)
        if process.at != "done" and replica.operation != wanted:
            return [Difference("the operation", wanted, replica.operation)]
        replica.join_timeout = process.join_timeout
        if following is not None:
            self._draw(replica, following)
        notes = variants(action.note)
        reply: object = None
        if action.name == "await_barrier":
            reply = action.result == THERE  # performed when the rank was counted; what the others did since then let it through
        elif not notes & UNPERFORMED and "patience ran out" not in notes:
            assert replica.operation is not None
            reply = self._perform(replica.line, replica.operation, action)
            if "reply lost" not in notes and (expected := translation.reply(action)) != reply:
                return [Difference("the reply", expected, reply)]
        elif "patience ran out" in notes:
            reply = False
        if notes & BREAKING and not ("not applied" in notes and action.op[0] in ("set", "append")):
            replica.break_connection(self.target)
        elif not (action.name == "arrive" and reply is False):  # else blocked in the barrier
            replica.resume(reply)
        return []

    def _perform(self, line: Line, operation: Operation, action: Action) -> object:
        reply = line.perform(operation)
        if isinstance(operation, ReadHeartbeat):
            # A last word may have been lost with the store; the model remembers it, and the observer comes to suspect by silence.
            if action.result in translation.LAST_WORDS and reply not in (action.result, None):
                return f"the store says {reply!r}"
            return action.result != "beating"
        return translation.settled(reply) if action.name == "read_arrived" and isinstance(reply, str) else reply

    def _clean_up(self, replica: Replica, action: Action) -> list[Difference]:
        assert action.op is not None
        key = translation.key(action.op[1])
        if key not in replica.state.deletions:
            return [Difference("the key to delete", key, replica.state.deletions)]
        if "connection lost" in action.note:
            replica.state.deletions = []
            return []
        replica.line.perform(Delete("clean_up", key))
        replica.state.deletions = [other for other in replica.state.deletions if other != key]
        return []

    def _start(self, rank: int) -> Replica:
        setting = self.system.setting
        state = RankState(rank, setting.ranks, setting.min_ranks, nonce="", generation="")
        replica = self.new_replica(state, self.target)
        replica.enter()
        return replica

    def _draw(self, replica: Replica, following: Process) -> None:
        """What the driver would draw at random: the nonce and the generation that the model chose."""
        if following.me is not None:
            replica.state.nonce = translation.number_text(following.me.nonce)
        replica.state.generation = translation.number_text(following.conn)

    # --- comparing

    def _compare(self, after: State) -> list[Difference]:
        shared: Shared = after.shared
        differences = []
        wanted, found = translation.contents(shared.store), translation.normal(self.target.contents())
        if wanted != found:
            for name in sorted(wanted.keys() | found.keys()):
                if wanted.get(name) != found.get(name):
                    differences.append(Difference(f"the store's key {name}", wanted.get(name), found.get(name)))
        for rank, local in enumerate(after.ranks):
            if len(local.processes) != len(self.ranks[rank]):
                differences.append(Difference(f"rank {rank}, processes", len(local.processes), len(self.ranks[rank])))
                continue
            for process, replica in zip(local.processes, self.ranks[rank], strict=True):
                differences += compare_process(rank, process, replica)
        return differences


def compare_process(rank: int, process: Process, replica: Replica) -> list[Difference]:
    if process.at == "left":
        return []
    if process.at == "stopped" or replica.stopped:
        at = replica.view().at
        return [] if process.at == at else [Difference(f"rank {rank}, at", process.at, at)]
    wanted, found = model_view(process), replica.view()
    if process.at == "done":
        # The model looks no further than to whether this process takes part in what was decided last, and what that is.
        decided = found._asdict() if process.member else {}
        known = {field: decided[field] for field in ("me", "record", "members") if decided}
        found = wanted._replace(member=found.member, **known)
    if process.at == TRAINING or not process.flag:
        found = found._replace(flag=wanted.flag)
    if wanted.at == "sign":  # the generator notes it as it issues the operation
        found = found._replace(signed=wanted.signed)
    if wanted.at in ("write_members", "restore_members"):  # likewise
        found = found._replace(written=wanted.written)
    if wanted == found:
        return []
    return [
        Difference(f"rank {rank}, {field}", ours, theirs)
        for field, ours, theirs in zip(View._fields, wanted, found, strict=True)
        if ours != theirs
    ]

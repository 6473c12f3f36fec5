"""The steps that the model offers at a node, with the nonces and generations that were drawn in truth."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from coxless_model.environment import Hardened, outcomes, with_process
from coxless_model.machine import Action, State, describe
from coxless_model.process import Process
from coxless_model.steps import STEPS

from .node import Node, replaced, with_budget, with_local, with_named
from .recorded import Item, Recording


class Run(NamedTuple):
    """What was recorded, and the model that is to admit it."""

    recordings: list[Recording]
    threads: list[tuple[Item, ...]]
    """Of each recording the training thread's items, then the clean-up's; and last the store losses that a supervisor saw."""
    seen_dead: list[int]
    """When the supervisor saw the process of each recording dead."""
    watched: bool
    """Whether a supervisor would have seen a store loss."""
    system: Hardened

    @property
    def environment(self) -> int:
        """The thread of the store losses."""
        return len(self.threads) - 1


def steps(
    run: Run, node: Node, rank: int, place: int, name: str, op: tuple[Any, ...] | None, faulty: bool = False
) -> Iterator[tuple[Action, Node]]:
    """The model's steps of one process by this name with this operation (or whatever comes next), and where they lead."""
    local = node.state.ranks[rank]
    p: Process = local.processes[place]
    if p.at not in STEPS or p.at == "done":
        return
    index = node.alive[rank][place]
    setting, shared = run.system.setting, node.state.shared
    if faulty:
        shared = with_budget(shared, 1)
    drawing = p.at in ("take_incarnation", "renew_incarnation", "create_register")
    for move in STEPS[p.at](setting, rank, p):
        if name and move.name != name:
            continue
        if op is not None and move.op != op and not (drawing and move.name == "create_register"):
            continue
        if drawing and move.note == "a lower nonce":
            continue
        for action, after, q in outcomes(setting, rank, shared, p, move):
            if place:
                action = action._replace(note=", ".join(filter(None, (action.note, second(place)))))
            if faulty:
                after = with_budget(after, 0)
            followed, became = run.system.followed(after, local, place, q), with_process(local, place, q)
            step = with_local(node._replace(state=State(followed, node.state.ranks)), rank, became)
            if drawing:
                named = with_named(step, node, rank, run.recordings[index].nonce, move, op)
                if named is None:
                    continue
                step, action = named, action._replace(
                    op=op or action.op, result=op[3] if op and action.name == "create_register" and action.result == move.op[3] else action.result
                )  # fmt: skip
            if len(became.processes) < len(local.processes):
                alive = replaced(node.alive, rank, tuple(i for i in node.alive[rank] if i != index))
                step = step._replace(alive=alive, gone=node.gone | {index}, stopped=node.stopped | {index})
            yield action, step._replace(taken=(action,))


def noted(node: Node, index: int, rank: int, before: Process) -> Node:
    """A process that has come to its training step has decided."""
    if index not in node.alive[rank]:
        return node
    p: Process = node.state.ranks[rank].processes[node.alive[rank].index(index)]
    return node._replace(fresh=node.fresh | {index}) if p.at == "arrive" and before.at != "arrive" else node


def enabled(run: Run, node: Node, rank: int) -> tuple[str, ...]:
    """What the model's rank could have done there, for people."""
    offered = run.system.local_steps(rank, node.state.shared, node.state.ranks[rank])
    unrecorded = ("crash", "leave", "join_timeout", "restart", "second_process")
    return tuple(describe(step.action) for step in islice(offered, 40) if step.action.name not in unrecorded)


def second(place: int) -> str:
    return "second process" if place else ""

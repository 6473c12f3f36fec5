"""The implementation with one guard taken away, as in the model's mutants: replaying random walks of the intact model finds it out."""

import inspect
from types import ModuleType
from typing import NamedTuple

import pytest

from coxless.protocol import PHASES, Phase, barrier, closing, joining, learning, recovery
from coxless_model.environment import hardened
from coxless_traces.replay import Mismatch
from coxless_traces.targets import Memory
from coxless_traces.walks import replay_walk

ROUGH = {
    "crashes": 1,
    "restarts": 2,
    "suspicions": 2,
    "failed_votes": 2,
    "lost_replies": 2,
    "second_processes": 1,
    "join_timeouts": 1,
    "store_losses": 1,
}
WALKS = 400


class Mutant(NamedTuple):
    guard: str
    """As the model calls it (coxless_model.mutants)."""
    module: ModuleType
    old: str
    new: str
    phases: tuple[str, ...]
    """The phases whose generators are in that module's mutated form."""


PROPOSAL = 'text = yield CompareSet("propose_same_epoch", keys.REGISTER, expected, desired)'

MUTANTS = (
    Mutant(
        "compare_set",
        barrier,
        PROPOSAL,
        f"{PROPOSAL}\n    if text != desired:\n        yield CompareSet('propose_same_epoch', keys.REGISTER, text, desired)",
        ("PROPOSE_SAME_EPOCH",),
    ),
    Mutant("superseded", closing, "if newer is not None:", "if False:", ("CLOSE",)),
    Mutant(
        "newest",
        closing,
        "max(newest.get(member.rank, member), member)",
        "min(newest.get(member.rank, member), member)",
        ("CLOSE",),
    ),
    Mutant("founding", closing, "if len(candidates) >= state.world_size:", "if True:", ("CLOSE",)),
    Mutant("suspicion", closing, "if not suspected:", "if True:", ("CLOSE",)),
    Mutant("heartbeats", closing, "if not suspected:", "if False:", ("CLOSE",)),
    Mutant("sign_again", recovery, "= False, False, NOTHING", "= False, state.signed, NOTHING", ("RECOVER",)),
    Mutant("votes", closing, "return bool(votes) and all(", "return True or all(", ("CLOSE",)),
    Mutant("somebody_voted", closing, "return bool(votes) and all(", "return all(", ("CLOSE",)),
    Mutant("content_addressed", closing, "epoch_of(k + 1, encoded)", 'epoch_of(k + 1, "")', ("CLOSE",)),
    Mutant("failure_attention", barrier, "if not state.record.attention:", "if False:", ("ARRIVE",)),
    Mutant("look_after_full", barrier, "if current.attention:", "if False:", ("PROPOSE_SAME_EPOCH",)),
    Mutant("joiner_attention", joining, "    if not state.record.attention:", "    if False:", ("SIGN_AS_JOINER",)),
    Mutant(
        "drop_state", joining, 'state.flag, state.signed = "j", True', 'state.flag, state.signed = "f", True', ("SIGN_AS_JOINER",)
    ),
    Mutant("incarnation_check", joining, "if newer is not None:", "if False:", ("JOIN",)),
    Mutant("membership", learning, "any(member == state.me for member, _ in members)", "True", ("LEARN",)),
    Mutant("restore_list", recovery, 'yield Set("restore_members", ', 'max("restore_members", ', ("RECOVER",)),
    Mutant("restore_record", recovery, "if state.record.iteration == 0 or state.members is None:", "if True:", ("RECOVER",)),
)


def found_out() -> int | None:
    """The seed of the first walk at which model and implementation part."""
    system, memory = hardened(2, 3, **ROUGH), Memory()
    for seed in range(WALKS):
        try:
            replay_walk(system, memory, seed, 300)
        except (Mismatch, RuntimeError, AssertionError):
            return seed
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guard)
def test_a_mutant_is_caught_by_replay(mutant, monkeypatch):
    source = inspect.getsource(mutant.module)
    assert mutant.old in source, "the implementation has changed: change the mutant too"
    names = dict(vars(mutant.module))
    exec(compile(source.replace(mutant.old, mutant.new), mutant.module.__file__, "exec"), names)
    for phase in mutant.phases:
        number = getattr(Phase, phase)
        monkeypatch.setitem(PHASES, number, names[PHASES[number].__name__])
    assert found_out() is not None


def test_without_a_mutation_nothing_is_found():
    system, memory = hardened(2, 3, **ROUGH), Memory()
    assert sum(replay_walk(system, memory, seed, 300) for seed in range(100)) > 2000

"""What the library does without a guard, along the counterexample of the model's mutant and on a real TCPStore, is harm that can be
seen from the outside: in the register, in the lists, and in what each rank is told. (test_failure_traces.py has the harm under the
schedules of the drawn protocol, in which nobody is suspected, no step fails, and no rank has two processes.)"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coxless.protocol import Decision
from coxless_model import itf
from coxless_model.environment import Hardened, hardened
from coxless_traces.replay import Lockstep, Replica
from coxless_traces.same_schedule import Harm, Witness
from coxless_traces.targets import Target, target
from coxless_traces.walks import ONE_OF_EACH, Step, walk

from .library_mutants import MUTANTS, apply

FOLDER = Path(__file__).parents[2] / "traces" / "mutants"
HARM = {
    "membership": "S4",
    "superseded": "S4",
    "newest": "S6",
    "incarnation_check": "S6",
    "state_in_epoch": "S7",
    "tell_holders": "S7",
    "drop_state": "S7",
    "votes": "S8",
    "peek": "S8",
}


@pytest.fixture(scope="module")
def store() -> Iterator[Target]:
    with target("tcp") as running:
        yield running


def watched(system: Hardened, steps: tuple[Step, ...], store: Target) -> None:
    """Follow the steps, and look for harm after each. Raises Harm. Nobody is taken to be alive: who is left out has been suspected."""
    lockstep, witness = Lockstep(system, store), Witness(world_size=system.setting.ranks, waited=True)
    told: dict[int, Decision] = {}

    def replicas() -> list[tuple[int, Replica]]:
        return [(rank, one) for rank, ones in enumerate(lockstep.ranks) for one in ones]

    def look() -> None:
        witness.look(store.contents())
        for rank, one in replicas():
            if one.decision is not None and one.decision is not told.get(id(one)):
                told[id(one)] = one.decision
                witness.told(rank, one.decision)

    try:
        for before, action, after in steps:
            training = [one for _, one in replicas() if one.generator is None]
            lockstep.step(before, action, after)
            for one in training:
                if one.generator is not None:
                    (witness.trained if one.state.flag == "o" else witness.failed).add(one.state.me)
            look()
        for _, one in replicas():
            if one.operation is not None and one.operation.step == "wake":  # all that is left to do before it is told
                one.resume(one.line.perform(one.operation))
                look()
    finally:
        lockstep.close()


@pytest.mark.parametrize(("guard", "promise"), HARM.items())
def test_the_harm_of_a_mutant_is_seen_from_outside(
    guard: str, promise: str, store: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = itf.read(FOLDER / f"without_{guard}.itf.json")
    system = trace.system
    assert isinstance(system, Hardened)
    apply(next(each for each in MUTANTS if each.guard == guard), monkeypatch)
    with pytest.raises(Harm, match=f"^{promise}: "):
        watched(system, itf.executed(system, trace).steps, store)


@pytest.mark.parametrize("seed", range(20))
def test_the_whole_library_does_none(seed: int, store: Target) -> None:
    """Along walks with suspicions, failed votes, crashes, second processes; a lost store is another matter: the register is gone."""
    system = hardened(2, 3, missing=(), **{**ONE_OF_EACH, "store_losses": 0})
    watched(system, tuple(walk(system, seed, 200)), store)

"""The mapping table holds every step of either side, and none that neither takes."""

import ast
import inspect
from pathlib import Path

import coxless.protocol
import coxless_model.environment
import coxless_model.hardened
import coxless_model.recovery
from coxless.protocol import operations
from coxless_model.environment import hardened
from coxless_traces import mapping
from coxless_traces.walks import ONE_OF_EACH, walk

TABLE = {row.step for row in mapping.STEPS} | {row.step for row in mapping.ENVIRONMENT}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def names_in(call: ast.Call, position: int) -> set[str]:
    """The text constants in one argument of a call (a name may be picked by a condition)."""
    if len(call.args) <= position:
        return set()
    return {
        node.value for node in ast.walk(call.args[position]) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def model_steps() -> set[str]:
    """As the code of the model spells them: Move(name, ...), Action(rank, name, ...)."""
    steps = set()
    for module in (coxless_model.hardened, coxless_model.recovery):
        for call in calls(Path(inspect.getfile(module))):
            if isinstance(call.func, ast.Name) and call.func.id == "Move":
                steps |= names_in(call, 0)
    for call in calls(Path(coxless_model.environment.__file__)):
        if isinstance(call.func, ast.Name) and call.func.id == "Action":
            steps |= names_in(call, 1)
    return steps | {"restart", "second_process"}  # chosen by a condition before the Action is made


def implementation_steps() -> dict[str, set[str]]:
    """Step names by the class of the operation that carries them."""
    kinds = {name for name in vars(operations) if isinstance(vars(operations)[name], type)}
    found: dict[str, set[str]] = {}
    for path in sorted(Path(coxless.protocol.__file__).parent.glob("*.py")):
        for call in calls(path):
            if isinstance(call.func, ast.Name) and call.func.id in kinds and names_in(call, 0):
                found.setdefault(call.func.id, set()).update(names_in(call, 0))
    return found


def test_every_step_of_the_model_is_in_the_table() -> None:
    assert model_steps() == TABLE | {row.step for row in mapping.ONLY_A_MUTANTS}


def test_every_step_of_the_implementation_is_in_the_table() -> None:
    found = implementation_steps()
    assert found.pop("JoinTimedOut") == set(mapping.QUESTIONS)
    # the barrier is one operation here, and two steps there: the command, and its end
    taken = set().union(*found.values()) | {"clean_up", "await_barrier"}
    assert taken == {row.step for row in mapping.STEPS}


def test_random_walks_meet_no_step_and_no_note_that_the_table_lacks() -> None:
    everything = hardened(2, 2, missing=(), **ONE_OF_EACH, clock_skews=1)
    met = [action for seed in range(150) for _, action, _ in walk(everything, seed, 150)]
    assert {action.name for action in met} <= TABLE
    notes = frozenset().union(*(mapping.variants(action.note) for action in met))
    assert notes == set(mapping.VARIANTS) - {""}

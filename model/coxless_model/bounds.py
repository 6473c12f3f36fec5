"""Which system, within which bounds: as a plain value that can be written into a trace file and turned into the system again."""

from collections.abc import Mapping
from typing import Any

from coxless_model.drawn import Budgets as DrawnBudgets
from coxless_model.drawn import Drawn, drawn
from coxless_model.environment import Budgets as HardenedBudgets
from coxless_model.environment import Hardened, hardened
from coxless_model.machine import System
from coxless_model.two_phase_commit import TwoPhaseCommit

BUDGETS: Mapping[str, tuple[str, ...]] = {
    "hardened": HardenedBudgets._fields,
    "drawn": DrawnBudgets._fields,
    "two-phase-commit": (),
}
"""The faults that the environment of each protocol knows."""

BOUNDS: Mapping[str, tuple[str, ...]] = {
    "hardened": ("ranks", "iterations", "min_ranks", "lag", "missing", "beyond"),
    "drawn": ("ranks", "iterations"),
    "two-phase-commit": ("ranks", "flaw"),
}
"""What else each of them can be told."""

Configuration = Mapping[str, Any]


def configuration(system: System) -> dict[str, Any]:
    """What it takes to build the system again. Budgets of zero are left out."""
    if isinstance(system, Hardened):
        setting = system.setting
        bounds = {"ranks": setting.ranks, "iterations": setting.iterations, "min_ranks": setting.min_ranks, "lag": setting.lag}
        beyond = {"beyond": True} if system.beyond else {}
        return {"protocol": "hardened", "missing": list(setting.missing), **bounds, **beyond, "budgets": _spent(system.budgets)}
    if isinstance(system, Drawn):
        bounds = {"ranks": system.ranks, "iterations": system.iterations}
        return {"protocol": "drawn", **bounds, "budgets": _spent(system.budgets)}
    if isinstance(system, TwoPhaseCommit):
        return {"protocol": "two-phase-commit", "flaw": system.flaw, "ranks": system.managers}
    raise TypeError(f"no configuration is known for {system.name}")


def configured(configuration: Configuration) -> System:
    """The system of a configuration; a ValueError says what is wrong with it."""
    given = dict(configuration)
    protocol = given.pop("protocol", None)
    budgets = given.pop("budgets", {})
    if protocol not in BUDGETS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(BUDGETS)}")
    if not isinstance(budgets, Mapping):
        raise ValueError(f"the budgets have to be named, not {budgets!r}")
    strange = sorted(set(given) - set(BOUNDS[protocol]))
    if strange:
        raise ValueError(f"the {protocol} protocol knows no {', '.join(strange)}; it knows {', '.join(BOUNDS[protocol])}")
    unknown = sorted(set(budgets) - set(BUDGETS[protocol]))
    if unknown:
        raise ValueError(f"the {protocol} protocol knows no budget for {', '.join(unknown)}")
    for name in (*budgets, *(each for each in ("ranks", "iterations", "min_ranks", "lag") if each in given)):
        value = budgets.get(name, given.get(name))
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} has to be a number, not {value!r}")
    try:
        if protocol == "two-phase-commit":
            return TwoPhaseCommit(given.pop("ranks"), given.pop("flaw", None), **given)
        if protocol == "drawn":
            return drawn(**given, **budgets)
        beyond = given.pop("beyond", False)
        return hardened(**given, **budgets)._replace(beyond=bool(beyond))
    except (TypeError, KeyError) as error:
        raise ValueError(f"the {protocol} protocol cannot be configured so: {error}") from None


def _spent(budgets: Any) -> dict[str, int]:
    return {name: value for name, value in budgets._asdict().items() if value}

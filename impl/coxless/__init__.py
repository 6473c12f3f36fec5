"""The ranks of a training job agree on which global iteration comes next and who takes part in it: no coordinator, crashes survived.

    with coxless.join(store, rank=rank, world_size=4, min_ranks=2) as crew:
        for iteration in crew.iterations(until=500):
            ...
            crew.vote(ok)

docs/protocol.md says how; `coxless.training` adds what data-parallel training needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .torch_environment import quiet_torch

quiet_torch()  # before torch is imported

if TYPE_CHECKING:
    from .crew import Crew, join, join_from_env
    from .errors import (
        CorruptStoreError,
        CoxlessError,
        CrewEndedError,
        IterationTimeoutError,
        StoreUnreachableError,
        SupersededError,
        UnfitStoreError,
    )
    from .iteration import Iteration
    from .records import Member
    from .store import connect

__all__ = [
    "CorruptStoreError",
    "CoxlessError",
    "Crew",
    "CrewEndedError",
    "Iteration",
    "IterationTimeoutError",
    "Member",
    "StoreUnreachableError",
    "SupersededError",
    "UnfitStoreError",
    "connect",
    "join",
    "join_from_env",
]

# Looked up at first use, so that the command line can print its help without waiting for torch.
_HOME = {
    "Crew": "crew",
    "join": "crew",
    "join_from_env": "crew",
    "Iteration": "iteration",
    "Member": "records",
    "connect": "store",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'coxless' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value

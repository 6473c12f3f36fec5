"""Partial-order reduction: a step that nobody can see or disturb need not be interleaved with everybody else's.

Where *all* that a rank can do is local (`System.local_only`: it touches only the rank's own local part, no property can
see it, nothing another rank does can disable or change it), it is enough to expand that rank alone: such a set of steps is
*ample*. The usual conditions, and why they hold:

- C0, C1 (nothing that depends on an ample step happens before one): other ranks cannot touch the rank's local part, and the
  hint says that they do not change its steps. It does not say that they cannot *enable* another step of the rank. So once
  the search is done, each local part at which a rank was expanded alone is asked again under every shared part that was met.
  If it offers other steps there, the hint is `trusted` no longer and the search is repeated in full. Nothing is missed by
  asking only then: the steps left out do not touch the shared part, so up to the first such shared part the reduced search
  meets all of them.
- C2 (invisible): part of the hint.
- C3 (no action is put off for ever round a cycle): a rank is expanded alone only if it thereby finds a new state. The last
  state of a cycle to be expanded finds none, and is expanded fully.

Verdicts stay the same; shortest traces need not stay shortest, since a local step may be taken earlier than it has to be.
"""

from coxless_model.machine import Action
from coxless_model.packed import Packed


class Ample:
    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._alone: dict[tuple[int, int], tuple[Action, ...]] = {}

    def alone(self, rank: int, local: int, actions: tuple[Action, ...]) -> bool:
        """May the rank, in this local part, be expanded alone?"""
        if not actions or not all(map(self._packed.system.local_only, actions)):
            return False
        self._alone.setdefault((rank, local), actions)
        return True

    def trusted(self) -> bool:
        """Whether each rank that was expanded alone could do nothing else under any shared part of the search."""
        packed = self._packed
        for (rank, local), actions in self._alone.items():
            for shared in map(packed.shared, range(len(packed.wides))):
                if tuple(step.action for step in packed.system.local_steps(rank, shared, packed.locals[local])) != actions:
                    return False
        return True

"""What each actor may do, as far as the search knows it: learned once, and then looked up in every state that is the same to the actor."""

from coxless_model.looks import Branch
from coxless_model.machine import Action, Situation, StepKind


class Known:
    """What an actor may do with one local part, where certain pieces of the shared part are the same, as far as the search
    needs it again."""

    __slots__ = ("alone", "asks", "differences", "lively", "names", "uses")

    def __init__(self, differences: tuple[tuple[int, int], ...], names: tuple[str, ...], lively: bool, alone: bool) -> None:
        self.differences = differences
        """Where the steps lead, as differences of the shared and of the local part; steps that change nothing are left out."""
        self.names = names
        self.lively = lively
        """Something is promised to happen: an action of some fairness class is enabled."""
        self.alone = alone
        self.asks: tuple[tuple[Situation, Action, tuple[int, int]], ...] = ()
        """Situations that also look at other parts of the state, so that they are asked wherever the steps are enabled."""
        self.uses = 0


IDLE = Known((), (), lively=False, alone=False)
"""Nothing at all, which is what most lanes have for most states."""
NOTHING = Branch()
"""Of a local part that nothing is known of."""


class Lane:
    """One actor and one kind of its steps, and what is known of each local part that it had. (The environment has none of its own: 0.)"""

    def __init__(self, actor: int, kind: StepKind, place: int, mask: int) -> None:
        self.actor = actor
        self.kind = kind
        self.place = place
        self.mask = mask
        self.known: list[Branch] = []
        """By the number of the local part."""
        self.unpacked: Unpacked = (self, place, mask, self.known)
        """For the innermost loop, to which looking at four attributes would be much."""

    def learned(self, own: int) -> Branch:
        """What is known of a local part, for more to be added to it."""
        if self.known[own] is NOTHING:
            self.known[own] = Branch()
        return self.known[own]


Unpacked = tuple[Lane, int, int, list[Branch]]

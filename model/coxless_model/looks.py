"""What was computed from a few pieces of the shared part, found again by looking at the same pieces in the same order.

A pure function that has looked at one piece looks next at one that is the same wherever that first piece is the same, and so on. So its
answers are the leaves of a tree: at each branch some pieces are looked at, always the same ones, and what is there says where
to go on. Whoever sees at the first look that there is nothing to do (a fault whose budget is spent, say) looks no further, and
one leaf answers for all such states.
"""

from typing import Any

Looks = tuple[int, ...]
"""Masks over a wide integer, disjoint, in the order in which they were looked at."""


class Branch:
    """A place in the tree: `mask` is what all that is found below looks at first, one look after the other."""

    __slots__ = ("known", "looks", "mask")

    def __init__(self, looks: Looks = ()) -> None:
        self.looks = looks
        self.mask = sum(looks)
        self.known: dict[int, Any] = {}
        """For each value of what is looked at, the answer or another branch."""

    def find(self, wide: int) -> Any:
        """The answer, or None if it is not known yet."""
        found = self.known.get(wide & self.mask)
        while type(found) is Branch:
            found = found.known.get(wide & found.mask)
        return found

    def add(self, wide: int, looks: Looks, answer: Any) -> None:
        """What a function has answered that looked at `looks`."""
        at = self
        if not at.known:
            at._look_at(looks)
        while True:
            common = _in_common(at.looks, looks)
            if common < len(at.looks):
                if not common:
                    raise RuntimeError("a step depends on something that is not in the state; on the order of a set?")
                at._split(common)
            looks = looks[common:]
            below = at.known.get(wide & at.mask)
            if below is None:
                if looks:
                    below = Branch(looks)
                    below.known[wide & below.mask] = answer
                at.known[wide & at.mask] = below if looks else answer
                return
            at = below

    def _look_at(self, looks: Looks) -> None:
        self.looks, self.mask = looks, sum(looks)

    def _split(self, common: int) -> None:
        """Have only the first of the looks here, and the others below."""
        rest, known = self.looks[common:], self.known
        self._look_at(self.looks[:common])
        self.known = {}
        for seen, answer in known.items():
            below = self.known.get(seen & self.mask)
            if below is None:
                below = self.known[seen & self.mask] = Branch(rest)
            below.known[seen & below.mask] = answer

    def answers(self) -> list[Any]:
        """All that is known, in the order in which it came to be known at each branch."""
        found: list[Any] = []
        for each in self.known.values():
            found += each.answers() if type(each) is Branch else (each,)
        return found


def _in_common(one: Looks, other: Looks) -> int:
    number = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        number += 1
    return number

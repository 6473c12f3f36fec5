"""Symmetry over ranks: of all states that differ only in how the ranks are named, one is kept.

The canonical form is exact: all renamings of a state, its orbit, have the same one. Of the shared parts that are renamings of
each other the first to be met stands for all. Only the renamings that lead there are left to try on the local parts (mostly
one), and of their packed integers the smallest is taken.

A search over canonical forms finds the shortest counterexamples of the full search (to within renaming), since every step
of a state has its image among the steps of each renaming. For the same reason a path of canonical forms can be turned back
into a concrete run without storing any permutation: from the concrete state, take the first step that leads into the
orbit of the next one (`concrete_run` in explore.py). Each stored step thereby *has* its permutation, it costs no memory.

Only for safety: fairness tells ranks apart, so liveness is checked on the full graph.
"""

from itertools import permutations
from typing import Any

from coxless_model.keyed import Keys
from coxless_model.machine import State, System
from coxless_model.packed import LOCAL_BITS, Packed


class NotSymmetric(Exception):
    """The system treats its ranks differently, so that no rank may stand for another."""


def renamed(system: System, state: State, perm: tuple[int, ...]) -> State:
    """The state with rank i called perm[i]."""
    ranks = list(state.ranks)
    for rank, local in enumerate(state.ranks):
        ranks[perm[rank]] = system.permute_local(local, perm)
    return State(system.permute_shared(state.shared, perm), tuple(ranks))


class Symmetry:
    """The canonical form of packed states, memoised on the interned parts.

    A renaming goes through the shared part piece by piece. The first piece decides which renamings are left to try.
    """

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self.perms = tuple(permutations(range(packed.ranks)))
        # For each shared number: the number of its image under each renaming that is left to try.
        self._shared: dict[int, tuple[tuple[int, int], ...]] = {}
        # For each number of a first piece: which renamings lead to the one that stands for it.
        self._first: dict[int, tuple[tuple[int, int], ...]] = {}
        self._standing: set[int] = set()
        self._pieces: tuple[tuple[dict[int, int], ...], ...] = tuple(tuple({} for _ in packed.parts.layout) for _ in self.perms)
        # For each renaming, of each entry of the mapping: what its image adds to the shared part.
        self._entries: tuple[dict[tuple[Any, int], int], ...] = tuple({} for _ in self.perms)
        # For each renaming: where a local number goes, already moved to the place of its new rank.
        self._local: list[list[dict[int, int]]] = [[{} for _ in range(packed.ranks)] for _ in self.perms]
        initial = packed.unpack(packed.initial)
        for perm in self.perms:
            if renamed(packed.system, initial, perm) != initial:
                raise NotSymmetric(f"{packed.system.name}: the initial state changes when ranks are renamed by {perm}")

    def canonical(self, key: int) -> int:
        """The state that stands for all renamings of this one."""
        number = key >> self.packed.shift
        candidates = self._shared.get(number)
        if candidates is None:
            candidates = self._rename_shared(number)
        if len(candidates) == 1 and not candidates[0][0]:
            return key  # Only the renaming that changes nothing is left.
        mask = self.packed.local_mask
        best = -1
        for which, image in candidates:
            rest = key
            for rank, lane in enumerate(self._local[which]):
                own = rest & mask
                rest >>= LOCAL_BITS
                moved = lane.get(own)
                if moved is None:
                    moved = self._rename_local(which, rank, own)
                image += moved
            if best < 0 or image < best:
                best = image
        return best

    def _rename_shared(self, number: int) -> tuple[tuple[int, int], ...]:
        """The renamings that are left to try, each with the image of the shared part."""
        packed, parts = self.packed, self.packed.parts
        wide = packed.wides[number]
        images: dict[int, int] = {}
        for which, first in self._rename_first(parts.number_in(0, wide), wide):
            image = first << parts.places[0]
            for piece, renamed_pieces in enumerate(self._pieces[which]):
                if piece:
                    own = parts.number_in(piece, wide)
                    moved = renamed_pieces.get(own)
                    if moved is None:
                        moved = renamed_pieces[own] = parts.number(piece, self._renamed(which, piece, wide))
                    image += moved << parts.places[piece]
            if parts.keys is not None:
                image += self._rename_entries(which, parts.keys, wide)
            images[which] = image
        least = min(images.values())
        chosen = {which: image for which, image in images.items() if image == least}
        found = tuple((which, packed.number_of_wide(image) << packed.shift) for which, image in chosen.items())
        self._shared[number] = found
        return found

    def _rename_entries(self, which: int, keys: Keys, wide: int) -> int:
        """What the entries of the mapping add, each renamed for itself: keys that a step creates may be met while we look."""
        total, known = 0, self._entries[which]
        for piece, number in tuple(keys.present(wide)):
            moved = known.get((piece.key, number))
            if moved is None:
                alone = self.packed.parts.whole(number << piece.place)
                renamed_alone = self.packed.system.permute_shared(alone, self.perms[which])
                moved = keys.wide(self.packed.parts.pieces(renamed_alone)[-1])
                known[piece.key, number] = moved
            total += moved
        return total

    def _rename_first(self, own: int, wide: int) -> tuple[tuple[int, int], ...]:
        found = self._first.get(own)
        if found is None:
            parts = self.packed.parts
            images = [self._renamed(which, 0, wide) for which in range(len(self.perms))]
            # The images are looked up, not numbered: most are never met, and they would take most of the memory.
            known = (parts.known(0, image) for image in images)
            representative = next((each for each in known if each is not None and each in self._standing), own)
            self._standing.add(representative)
            chosen = parts.values[0][representative]
            found = tuple((which, representative) for which, image in enumerate(images) if image == chosen)
            self._first[own] = found
        return found

    def _renamed(self, which: int, piece: int, wide: int) -> Any:
        parts = self.packed.parts
        return parts.pieces(self.packed.system.permute_shared(parts.whole(wide), self.perms[which]))[piece]

    def _rename_local(self, which: int, rank: int, own: int) -> int:
        packed, perm = self.packed, self.perms[which]
        image = packed.number_of_local(packed.system.permute_local(packed.locals[own], perm))
        moved = image << (LOCAL_BITS * perm[rank])
        self._local[which][rank][own] = moved
        return moved

"""What properties and situations look at, so that they are asked once for each thing that they can see."""

from collections.abc import Hashable

from coxless_model.looks import Branch
from coxless_model.machine import Invariant, State, Views
from coxless_model.packed import Packed
from coxless_model.watched import Watched


class Viewed:
    """The invariants that look at the same views, and numbers for these: what they see of a state is one integer."""

    def __init__(self, packed: Packed, views: Views, invariants: tuple[Invariant, ...]) -> None:
        self.invariants = invariants
        self.views = views
        self._packed = packed
        self._numbers: dict[Hashable, int] = {}
        self.lanes: tuple[tuple[int, list[int]], ...] = tuple((place, []) for place in packed.places)
        """For each rank, what each local part adds to the view of the state."""
        self.clean: set[int] = set()
        """The views that have been asked."""
        self._shared = Branch()

    def of_shared(self, wide: int) -> int:
        """What a shared part adds to the view of the state; -1 if nothing need be asked there."""
        found: int | None = self._shared.find(wide)
        if found is None:
            shared, seen = self._packed.parts.noting(wide)
            view = self.views.shared(shared)
            found = -1 if view is None else self._numbers.setdefault(view, len(self._numbers)) << self._packed.shift
            self._shared.add(wide, self._packed.parts.looks(seen), found)
        return found

    def look_at_locals(self) -> None:
        """At those that are new."""
        for local in self._packed.locals[len(self.lanes[0][1]) :]:
            view = self.views.local(local)
            number = self._numbers.setdefault(view, len(self._numbers))
            for place, views in self.lanes:
                views.append(number << place)


class Noting:
    """A state that notes what is looked at."""

    def __init__(self, packed: Packed, key: int) -> None:
        shared, self._seen = packed.parts.noting(packed.wides[key >> packed.shift])
        self._parts = packed.parts
        self.state = Watched.of(State(shared, packed.local_parts(key)))

    def forget(self) -> None:
        self._seen.forget()
        self.state.looked.clear()

    @property
    def ranks(self) -> set[int]:
        return self.state.looked

    @property
    def mask(self) -> int:
        """The bits of the shared part that were looked at."""
        return sum(self._parts.looks(self._seen))

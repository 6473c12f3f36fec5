"""Whether the model could have done what was recorded: the verdict on a folder of recordings. search.py has the search."""

from pathlib import Path
from typing import NamedTuple

from coxless_model import itf

from .guesses import with_guesses
from .model_steps import enabled
from .prefix import prefix_of
from .recorded import FOREVER, LOCAL, Flaw, Item, read_recordings, text_of
from .search import PLENTY, Search
from .supervised import contradictions, read_supervisors


class Verdict(NamedTuple):
    admitted: bool
    lines: int
    explained: int
    wrong_suspicions: int = 0
    steps_back: int = 0
    flaws: tuple[Flaw, ...] = ()
    undetermined: bool = False
    """The search gave up, or a part of the run was not recorded: nothing is claimed."""
    unexplained: Item | None = None
    text: str = ""
    """The line that nothing explains."""
    why: str = ""
    enabled: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    """Properties that the run broke although the model admits it."""
    void: bool = False
    """The store-loss clause (docs/protocol.md) ceased to hold: from there on the properties are not claimed."""
    search: Search | None = None
    """Of a rejected recording: what knows how it came as far as it did."""

    @property
    def holds(self) -> bool:
        return self.admitted and not self.broken and all(flaw.harmless for flaw in self.flaws)

    @property
    def code(self) -> int:
        """The exit code: 0 it holds, 3 nothing is claimed, 1 otherwise."""
        if self.holds:
            return 0
        flawed = bool(self.broken) or any(not flaw.harmless and not flaw.open_end for flaw in self.flaws)
        return 3 if self.undetermined and not flawed else 1

    @property
    def word(self) -> str:
        return {0: "admitted", 1: "rejected", 3: "undetermined"}[self.code]


def validate(folder: Path) -> Verdict:
    """Judge the recordings in a folder."""
    recordings, flaws = read_recordings(folder)
    seen = read_supervisors(folder)
    flaws += [*seen.flaws, *contradictions(seen, recordings)]
    if not recordings:
        return Verdict(False, 0, 0, flaws=tuple(flaws), why="there are no recordings here")
    lives = map(seen.life_of, recordings)
    search = Search(with_guesses(recordings), [FOREVER if life is None else life.seen_dead for life in lives], seen.losses)
    node = search.run()
    end = search.first() if node is None and search.deepest is None else node or search.deepest
    assert end is not None
    shared = end.state.shared
    wrong = shared.ghost.wrong if end.claims is None else end.claims
    so_far = Verdict(
        node is not None, search.lines, _lines(search, end), PLENTY - shared.budgets.suspicions, search.steps_back, tuple(flaws),
        broken=tuple(f"{one.property}: {one.what.format(one.member)}" for one in wrong), void=shared.ghost.void,
    )  # fmt: skip
    if node is not None:
        unrecorded = any(flaw.open_end for flaw in flaws)
        return so_far._replace(undetermined=unrecorded, why="a part of the run was not recorded" if unrecorded else "")
    waiting = [search.recorded.threads[t][at] for t, at in end.cursors if t != search.recorded.environment]
    eligible = [item for item in waiting if item.kind in LOCAL] or sorted(waiting, key=lambda item: item.end)
    if not eligible:
        return so_far._replace(undetermined=search.gave_up, why="the store loss that the supervisor saw is not explained")
    item = eligible[0]
    rank = next(one.rank for one in recordings if one.name == item.file)
    why = "no order of the operations explains this line"
    if search.gave_up:
        why = f"the search gave up after {search.steps_back} steps back, so nothing is claimed; it came as far as this line"
    return so_far._replace(
        undetermined=search.gave_up, unexplained=item, text=text_of(folder / item.file, item.line), why=why,
        enabled=enabled(search.recorded, end, rank), search=search,
    )  # fmt: skip


def _lines(search: Search, node: object) -> int:
    left = 0
    for thread, at in node.cursors:  # type: ignore[attr-defined]
        if thread != search.recorded.environment:
            left += sum(not item.extra for item in search.recorded.threads[thread][at:])
    for index in range(node.upcoming, len(search.recorded.recordings)):  # type: ignore[attr-defined]
        left += sum(not item.extra for t in (2 * index, 2 * index + 1) for item in search.recorded.threads[t])
    return search.lines - left


def prefix(verdict: Verdict, title: str) -> itf.TraceFile | None:
    """The longest explained prefix of a rejected recording, as a run of the model."""
    return None if verdict.search is None else prefix_of(verdict.search, title)

"""What was computed once is found wherever the same would come out, and nowhere else."""

import random

import pytest

from coxless_model.looks import Branch, Looks

WIDTH = 3
PIECES = 6


class Pure:
    """A function that looks at some pieces of a wide integer: at which next depends on what it has seen."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, wide: int) -> tuple[str, Looks]:
        seen: tuple[int, ...] = ()
        looks: list[int] = []
        left = list(range(PIECES))
        while left and (choice := random.Random(f"{self.seed} {seen}")).random() < 0.8:
            piece = left.pop(choice.randrange(len(left)))
            looks.append(7 << WIDTH * piece)
            seen += (wide >> WIDTH * piece & 7,)
        return str(seen), tuple(looks)


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_found_exactly_where_the_function_would_give_it(seed: int) -> None:
    function, root, chance = Pure(seed), Branch(), random.Random(seed)
    asked: set[str] = set()
    for _ in range(1500):
        wide = sum(chance.choice((0, 0, 1, 2)) << WIDTH * piece for piece in range(PIECES))
        answer, looks = function(wide)
        found = root.find(wide)
        assert found == (answer if answer in asked else None)
        if found is None:
            root.add(wide, looks, answer)
            asked.add(answer)
    assert sorted(root.answers()) == sorted(asked)


def test_who_looks_no_further_is_asked_once() -> None:
    """A fault whose budget is spent: whatever else was looked at while it was not."""
    root = Branch()
    root.add(0b111_1, (0b000_1, 0b111_0), "it happens")
    root.add(0b101_0, (0b000_1,), "spent")
    root.add(0b011_1, (0b000_1, 0b111_0), "it happens elsewhere")
    assert {root.find(wide << 1) for wide in range(8)} == {"spent"}
    assert [root.find(wide << 1 | 1) for wide in (7, 3, 0)] == ["it happens", "it happens elsewhere", None]


def test_what_looks_at_something_else_though_it_saw_the_same_is_no_function() -> None:
    root = Branch()
    root.add(0b01, (0b01,), "one")
    with pytest.raises(RuntimeError, match="not in the state"):
        root.add(0b00, (0b10,), "another")

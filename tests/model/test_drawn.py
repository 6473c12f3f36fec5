"""The drawn protocol does not keep its promises, each in its own way."""

import pytest

from coxless_model.corpus import shortest
from coxless_model.drawn import FLAWS, drawn
from coxless_model.explore import explore
from coxless_model.machine import describe


def test_the_first_rank_to_start_trains_alone() -> None:
    result = explore(drawn(2, 1))
    found = next(each for each in result.counterexamples if each.property == "S3")
    assert found.wrong == "iteration 1 is decided before a rank that was never seen has arrived"
    assert [describe(action) for action in found.trace.actions] == [
        "rank 0: send_heartbeat set(('drawn_heartbeat', 0), 'beat')",
        "rank 0: signal_arrival append(('drawn_arrived',), 0)",
        "rank 0: read_arrived read(('drawn_arrived',)) -> (0,)",
        "rank 0: read_heartbeat read(('drawn_heartbeat', 1)) -> 'PROBE'",
        "rank 0: set_consensus set(('consensus',), 0)",
        "rank 0: read_consensus read(('consensus',)) -> 0",
    ]


@pytest.mark.parametrize("name", ["S1", "S2", "S3", "S4", "S5", "L1"])
def test_it_breaks_every_promise(name: str) -> None:
    assert explore(drawn(2, 2), properties=[name]).counterexamples


def test_the_arrival_that_counts_is_of_an_incarnation_that_has_died() -> None:
    trace = shortest(next(flaw for flaw in FLAWS if flaw.name == "arrival_of_a_dead_incarnation"))
    taken = [(action["rank"], action["name"]) for action in trace.actions]
    assert taken.index((0, "signal_arrival")) < taken.index((0, "crash")) < taken.index((0, "restart"))
    assert (0, "signal_arrival") not in taken[taken.index((0, "restart")) :]
    looked = next(action for action in trace.actions if action["name"] == "read_arrived")
    assert looked["rank"] == 1 and looked["result"] == {"#tup": [0, 1]}

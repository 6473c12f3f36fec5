"""What the store-loss clause is for: for each of its parts a run in which that part does not hold, and an iteration is decided twice.

The clause is a condition that the ghost keeps (ghost.py; docs/protocol.md, "What a store restart does not lose"). Each run here goes on where
it no longer holds (`beyond`), up to the second decision. They are histories and not what a search finds first, so that each is told
in the order in which people would tell it.
"""

from collections.abc import Callable
from typing import NamedTuple

from coxless_model.environment import hardened
from coxless_model.history import History
from coxless_model.machine import ENVIRONMENT

PROPERTY = "S2"


class Part(NamedTuple):
    """A part of the clause, and the run that shows what it is for."""

    name: str
    """Of the trace file: what happens."""
    part: str
    """What the clause asks for, and the run lacks."""
    story: str
    suffers: str
    """What this means for a training job."""
    faults: dict[str, int]
    """Besides the store loss."""
    iterations: int
    script: Callable[[History], None]
    wrong: str

    @property
    def prose(self) -> str:
        return f"The clause asks: {self.part}. Here: {self.story} {self.suffers}"


def run(part: Part) -> History:
    """The run, up to the second decision."""
    system = hardened(2, part.iterations, 1, 0, (), store_losses=1, **part.faults)._replace(beyond=True)
    history = History(system)
    part.script(history)
    return history


def _only_rank_1_knows_of_2(history: History) -> None:
    """Both ranks take part in iteration 1 and arrive at its barrier; rank 1 decides 2, and rank 0 has not heard of it."""
    history.until(0, "await_full")
    history.until(1, "arrive")
    history.until(0, "arrive")
    history.do(0, "arrive")
    history.do(1, "arrive")
    history.do(1, "propose_same_epoch")


def _rank_0_decides_2_alone(history: History, silence: str = "") -> None:
    """Rank 0 restores iteration 1, the last that it knows, finds rank 1 missing at its barrier, and goes on without it."""
    history.do(0, "await_barrier", "connection lost")
    history.until(0, "read_heartbeat")
    history.do(0, "read_heartbeat", silence)
    history.until(0, "propose_new_epoch")
    history.do(0, "propose_new_epoch")


def _crashes(history: History) -> None:
    _only_rank_1_knows_of_2(history)
    history.do(1, "crash")
    history.do(1, "go_stale")
    history.do(ENVIRONMENT, "lose_store")
    _rank_0_decides_2_alone(history)


def _is_suspected(history: History) -> None:
    _only_rank_1_knows_of_2(history)
    history.do(ENVIRONMENT, "lose_store")
    _rank_0_decides_2_alone(history, "wrong suspicion")


def _leaves(history: History) -> None:
    _only_rank_1_knows_of_2(history)
    history.until(1, "arrive")
    while history.state.ranks[1].processes[0].queue:
        history.do(1, "clean_up")
    history.do(1, "leave")
    history.do(ENVIRONMENT, "lose_store")
    _rank_0_decides_2_alone(history)


def _is_replaced(history: History) -> None:
    history.until(0, "await_full")
    history.until(1, "arrive")  # 1 is decided, and only rank 1 knows
    history.do(ENVIRONMENT, "lose_store")
    history.do(1, "second_process")
    history.do(1, "take_incarnation", "a higher nonce")
    history.until(1, "await_full", process=1)  # it has made a new register, and signed there
    history.do(0, "await_full", "connection lost")
    history.until(0, "propose_new_epoch")
    history.do(0, "propose_new_epoch")


def _found_again(history: History) -> None:
    history.until(0, "await_full")
    history.until(1, "arrive")  # 1 is decided, and only rank 1 knows
    history.do(ENVIRONMENT, "lose_store")
    history.do(0, "await_full", "connection lost")
    history.until(0, "read_arrived")
    history.do(0, "join_timeout")
    history.until(0, "propose_new_epoch")
    history.do(0, "propose_new_epoch")


def _joiner(history: History) -> None:
    history.until(0, "read_arrived")
    history.do(0, "join_timeout")
    history.until(0, "arrive")  # iteration 1, of rank 0 alone
    history.do(0, "sign", "the step failed")
    history.do(0, "raise_attention")
    history.until(1, "await_full")
    history.do(1, "await_full", "patience ran out")
    history.until(1, "propose_new_epoch")
    history.do(1, "propose_new_epoch")  # iteration 2, of both
    history.do(ENVIRONMENT, "lose_store")
    history.do(0, "arrive", "connection lost")
    history.until(0, "propose_new_epoch")
    history.do(0, "propose_new_epoch")


def _left_out(history: History) -> None:
    history.until(0, "await_full")
    history.until(1, "arrive")
    history.until(0, "arrive")  # iteration 1, of both
    history.until(1, "read_heartbeat")
    history.do(1, "read_heartbeat", "wrong suspicion")
    history.until(1, "arrive")  # iteration 2, of rank 1 alone
    history.do(1, "crash")
    history.do(1, "restart")
    history.do(1, "go_stale")
    history.until(1, "arrive")  # iteration 3, of its new process
    history.do(1, "arrive")
    history.until(1, "arrive")  # iteration 4: it took part in the last two, lives, and knows
    history.do(ENVIRONMENT, "lose_store")
    history.do(0, "arrive", "connection lost")
    history.until(0, "propose_new_epoch")
    history.do(0, "propose_new_epoch")


TWO_MODELS = (
    "Rank 1 holds the weights of one iteration 2 and rank 0 those of another: the two have parted, and each believes it is right."
)

PARTS = (
    Part(
        "the_only_rank_that_knew_crashes",
        "a rank that knows the last decision stays alive until it has restored it",
        "rank 1 decides iteration 2 and crashes before rank 0 has heard of it, and then the store comes back empty. Nobody who lives knows of "
        "iteration 2. Rank 0 restores iteration 1, waits for rank 1 until it is silent, and decides 2 again, alone.",
        "What rank 1 did as of iteration 2 (a log line, a checkpoint that says 2) is of a history that did not happen.",
        {"crashes": 1},
        3,
        _crashes,
        "iteration 2 was decided again",
    ),
    Part(
        "the_only_rank_that_knew_is_suspected",
        "that rank is not suspected meanwhile",
        "rank 1 decides iteration 2 and trains it; the store comes back empty. Rank 0, which has not heard of 2, restores iteration 1, takes rank 1 "
        "wrongly for dead, and decides 2 again, alone.",
        TWO_MODELS,
        {"suspicions": 1},
        3,
        _is_suspected,
        "iteration 2 was decided again",
    ),
    Part(
        "the_only_rank_that_knew_leaves",
        "that rank does not leave meanwhile",
        "rank 1 decides iteration 2 and leaves on purpose, before rank 0 has heard of 2; then the store comes back empty. Rank 0 restores iteration 1, "
        "waits for rank 1 until it is silent, and decides 2 again, alone.",
        "What rank 1 saved as it left is of another iteration 2 than the one that the job goes on with.",
        {"leaves": 1},
        3,
        _leaves,
        "iteration 2 was decided again",
    ),
    Part(
        "the_only_rank_that_knew_is_replaced",
        "that rank is not replaced by another process of it meanwhile",
        "rank 1 founds the job, and rank 0 has not heard of it as the store comes back empty. A second process of rank 1 is started, finds nothing "
        "there, and founds the job anew with rank 0, while the first one still trains iteration 1.",
        "Two processes of rank 1 train an iteration 1 each, until the first one asks the store again and finds itself replaced.",
        {"second_processes": 1},
        2,
        _is_replaced,
        "iteration 1 was decided again",
    ),
    Part(
        "the_job_is_founded_again",
        "before iteration 1 that rank is back within the join timeout",
        "rank 1 founds the job with both ranks, and rank 0 has not heard of it as the store comes back empty. Rank 0 makes a new register and waits for "
        "rank 1; its join timeout passes before rank 1 has noticed anything, and it founds the job again, alone.",
        "Two jobs start from the same checkpoint under one name, and the work of one is thrown away.",
        {"join_timeouts": 1},
        2,
        _found_again,
        "iteration 1 was decided again",
    ),
    Part(
        "only_a_joiner_knew",
        "the rank that knows took part in the last two iterations",
        "rank 0 trains iteration 1 alone, its step fails, and rank 1 joins and decides iteration 2, of both. The store comes back empty before rank 0 has "
        "heard of it. Rank 1 lives and knows, but took part in 2 only: rank 0 restores iteration 1, in whose list there is nobody to wait for, and decides "
        "2 again, alone.",
        TWO_MODELS,
        {"join_timeouts": 1, "failed_votes": 1},
        2,
        _joiner,
        "iteration 2 was decided again",
    ),
    Part(
        "left_out_by_mistake_and_unaware",
        "no live rank that was left out by mistake has yet to learn so",
        "rank 0 hangs in iteration 1 and is left out by mistake; the job goes on to iteration 4 in a new process of rank 1. The store comes back empty, and "
        "rank 0 wakes. All that it remembers are itself and a process that is dead: it restores iteration 1 and decides 2 again, alone, before rank 1 has "
        "restored 4.",
        "Rank 0 trains another iteration 2, from the weights of long ago; should it come as far as 4 before rank 1 has restored that, the work of rank 1 "
        "since then is thrown away.",
        {"crashes": 1, "restarts": 1, "suspicions": 1},
        5,
        _left_out,
        "iteration 2 was decided again",
    ),
)

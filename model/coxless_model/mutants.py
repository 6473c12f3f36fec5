"""The hardened protocol with one guard taken away, again and again: what each guard is for, shown by what happens without it.

Each mutant has the smallest bounds under which the model finds the violation and the property that finds it. A mutant that
nothing can kill would say that its guard is not needed, or that a property is missing; EQUIVALENT holds those whose guard is
for speed only, with the argument.
"""

from collections.abc import Mapping
from typing import NamedTuple

from .environment import Hardened, hardened


class Mutant(NamedTuple):
    guard: str
    removed: str
    """What the mutant does not do."""
    suffers: str
    """What that means for a training job."""
    killed_by: str
    ranks: int
    iterations: int
    budgets: Mapping[str, int]
    min_ranks: int = 1
    liveness: bool = False
    """The property is a goal, checked on the graph of states; otherwise it is an invariant."""

    @property
    def name(self) -> str:
        return f"without_{self.guard}"

    @property
    def system(self) -> Hardened:
        return mutant(self)


def mutant(which: Mutant) -> Hardened:
    """The protocol without the guard, within the mutant's bounds."""
    return hardened(which.ranks, which.iterations, min_ranks=which.min_ranks, missing=(which.guard,), **which.budgets)


def by_name(name: str) -> Mutant:
    """The mutant of that name (or guard)."""
    for each in (*MUTANTS, *EQUIVALENT):
        if name in (each.name, each.guard):
            return each
    raise ValueError(f"no mutant {name!r}; there are {', '.join(each.guard for each in (*MUTANTS, *EQUIVALENT))}")


MUTANTS: tuple[Mutant, ...] = (
    # --- The register ---
    Mutant(
        "compare_set",
        "propose with set, not with compare_set",
        "Two ranks decide the same iteration, each with itself as the winner; the later one overwrites the earlier.",
        "S2", 2, 1, {},
    ),
    Mutant(
        "spare_the_register",
        "the winner's clean-up deletes the register as well",
        "Who comes next finds no register, founds the job anew, and trains from iteration 1 while others are far ahead.",
        "S2", 2, 2, {},
    ),
    Mutant(
        "restore_record",
        "after a store loss found the job anew instead of restoring what one knows",
        "A restarted store sets the job back to iteration 1.",
        "S2", 2, 2, {"store_losses": 1},
    ),
    Mutant(
        "restore_list",
        "restore the register without the members list it points at",
        "A rank that learns the restored record looks for its list for ever.",
        "L2", 2, 2, {"store_losses": 1}, liveness=True,
    ),
    # --- Identity ---
    Mutant(
        "incarnation",
        "every process of a rank is the same member",
        "The vote of a dead process is taken for that of its successor: an update counts that the rank no longer has.",
        "S8", 2, 2, {"crashes": 1, "restarts": 1},
    ),
    Mutant(
        "nonce",
        "an incarnation is a number alone",
        "After a store loss a restarted process is the member that its predecessor was, and is taken to be in the middle of its iteration.",
        "S5", 2, 1, {"store_losses": 1, "crashes": 1, "restarts": 1},
    ),
    Mutant(
        "stand_down",
        "go on as a newer incarnation although another process has taken the rank over",
        "Two processes of a rank push each other out for ever; whoever loses has to receive the model state again.",
        "S6", 2, 1, {"second_processes": 1},
    ),
    Mutant(
        "ask_counter",
        "a joiner stops as soon as a newer incarnation of its rank has signed, whatever the counter says",
        "After a store loss a restarted rank takes its dead predecessor for a successor, and ends.",
        "L2", 1, 2, {"store_losses": 1, "crashes": 1, "restarts": 1},
    ),
    Mutant(
        "renew",
        "a rank whose counter was lost with the store does not take a number above the old one",
        "It ends, though nobody has taken its place.",
        "L2", 1, 2, {"store_losses": 1, "crashes": 1, "restarts": 1},
    ),
    Mutant(
        "outnumber",
        "after a store loss take the next number, not one above that of the other incarnation",
        "The rank still counts as older than its dead predecessor, and takes a number once more when the store has lost nothing.",
        "S6", 1, 2, {"store_losses": 1, "crashes": 2, "restarts": 2},
    ),
    Mutant(
        "newest",
        "list everyone who signed, not only the newest incarnation of each rank",
        "Two processes of one rank are in the process group.",
        "S6", 2, 1, {"second_processes": 1},
    ),
    Mutant(
        "superseded",
        "go on closing though a newer incarnation of one's own rank has signed",
        "A rank that has been replaced decides, and takes part in an iteration in which its successor is listed.",
        "S4", 2, 1, {"second_processes": 1},
    ),
    Mutant(
        "incarnation_check",
        "join without asking whether one has been replaced",
        "The old process comes back in the place of the new one, which is thrown out.",
        "S6", 2, 2, {"second_processes": 1, "suspicions": 1},
    ),
    # --- Founding ---
    Mutant(
        "founding",
        "found the job with whoever is there",
        "The first rank to start trains alone; the others have to join it one by one.",
        "S3", 2, 1, {},
    ),
    Mutant(
        "min_ranks",
        "close with fewer than min_ranks",
        "The job goes on with fewer ranks than its batch needs.",
        "S3", 2, 2, {"crashes": 1}, min_ranks=2,
    ),
    Mutant(
        "fresh_timeout",
        "after a store loss count the join timeout from the first founding",
        "The first rank to come back founds the job anew, and decides again what the others, about to restore it, had decided.",
        "S2", 2, 2, {"store_losses": 1, "join_timeouts": 1},
    ),
    # --- The count ---
    Mutant(
        "members_only",
        "joiners add to the count too",
        "The count is reached while a member is still training; the iteration is decided without it.",
        "S3", 3, 2, {"join_timeouts": 1},
    ),
    Mutant(
        "add_once",
        "be counted again when the reply was lost",
        "One rank counts twice, and the barrier opens for a rank that has not arrived.",
        "S3", 2, 2, {"lost_replies": 1},
    ),
    Mutant(
        "fresh_count",
        "use one count for all iterations",
        "The count of the iteration before opens the next barrier at once.",
        "S3", 2, 3, {},
    ),
    Mutant(
        "peek",
        "look at the count by compare_set after the connection broke",
        "TCPStore lets through whoever waits there: an update counts that the rank which looked never made.",
        "S8", 2, 2, {"failed_votes": 1, "lost_replies": 1},
    ),
    Mutant(
        "timeout_decides_nothing",
        "swallow the timeout of the barrier and return the old iteration",
        "A rank trains its batch again and arrives twice; the others' gradients are missed.",
        "S3", 2, 2, {},
    ),
    # --- Attention ---
    Mutant(
        "joiner_attention",
        "joiners do not raise attention",
        "A restarted rank waits while the others go on without ever looking at who wants to join.",
        "L2", 2, 3, {"join_timeouts": 1},
    ),
    Mutant(
        "failure_attention",
        "a member whose step failed does not raise attention",
        "The others commit an update that one of them never made; the models drift apart.",
        "S8", 2, 2, {"failed_votes": 1},
    ),
    Mutant(
        "attention_first",
        "be counted first, sign and raise attention after it",
        "The barrier opens and is decided before anyone can see that a step failed.",
        "S8", 2, 2, {"failed_votes": 1},
    ),
    Mutant(
        "look_after_full",
        "keep the epoch blindly when the barrier is full",
        "A failed step, or a rank that wants to join, is not looked at.",
        "S8", 2, 2, {"failed_votes": 1},
    ),
    Mutant(
        "look_again",
        "after losing to attention propose the same list again",
        "Who raised attention is overlooked: it has done everything right and is left out.",
        "L2", 2, 2, {"crashes": 1, "restarts": 1},
    ),
    # --- The slow path ---
    Mutant(
        "patience",
        "wait at the barrier as long as it takes",
        "One rank dies, and all the others wait for ever.",
        "L1", 2, 2, {"crashes": 1, "join_timeouts": 2}, liveness=True,
    ),
    Mutant(
        "suspicion",
        "suspect nobody",
        "One rank dies, and the others look for it again and again without going on.",
        "L1", 2, 2, {"crashes": 1, "join_timeouts": 2}, liveness=True,
    ),
    Mutant(
        "persist",
        "end as soon as the patience has run out",
        "A rank that was a little early ends.",
        "L2", 2, 2, {},
    ),
    Mutant(
        "listen",
        "take everybody for silent who has not signed",
        "A rank that is a little slower than the others loses its place and its work.",
        "S3", 2, 2, {},
    ),
    Mutant(
        "heartbeats",
        "close without those who have not signed, whether their hearts beat or not",
        "A rank that is a little slower than the others loses its place and its work.",
        "S3", 2, 2, {},
    ),
    Mutant(
        "own_clock",
        "compare the wall clock in a heartbeat with one's own",
        "A rank on a host whose clock is behind is thrown out though it beats.",
        "S3", 2, 2, {"clock_skews": 1},
    ),
    Mutant(
        "sign_again",
        "sign once, and do not look for one's own signature",
        "After a store loss everyone waits for signatures that everyone believes to have given.",
        "L1", 2, 2, {"store_losses": 1}, liveness=True,
    ),
    Mutant(
        "fresh_arrived",
        "use one `arrived` key for all iterations",
        "A signature of an earlier iteration counts as an arrival; the others go on without waiting.",
        "S3", 2, 2, {},
    ),
    # --- Lists and state ---
    Mutant(
        "content_addressed",
        "name a list by its iteration alone",
        "A closer that loses overwrites the winner's list, and ranks train with different ideas of who is there.",
        "S4", 2, 2, {"lost_replies": 1, "suspicions": 1},
    ),
    Mutant(
        "state_in_epoch",
        "keep the epoch when everyone signed, whatever they signed",
        "A rank without the model state is taken to have it, and averages random weights into the model.",
        "S7", 2, 2, {"failed_votes": 1},
    ),
    Mutant(
        "tell_holders",
        "list everyone as one that does not hold the state",
        "Nobody is asked for the model state any more; the work of all is thrown away.",
        "S7", 2, 2, {"suspicions": 1},
    ),
    Mutant(
        "rejoin",
        "a rank that was left out ends",
        "Each wrong suspicion costs the job a rank for good.",
        "L2", 2, 2, {"crashes": 1, "restarts": 1},
    ),
    Mutant(
        "reread",
        "end when the list that one joins is gone",
        "A rank that starts while the others go on ends instead of looking where they are.",
        "L2", 2, 2, {"suspicions": 1},
    ),
    Mutant(
        "drop_state",
        "a rank that was left out says that it still holds the state",
        "It goes on with a model that is behind the others'.",
        "S7", 2, 3, {"suspicions": 1},
    ),
    Mutant(
        "membership",
        "take part without being listed",
        "A rank that was given up on sends its gradients all the same.",
        "S4", 2, 2, {"suspicions": 1},
    ),
    Mutant(
        "commit",
        "decide on the fast path that the update does not count",
        "The job repeats its first batch for ever.",
        "S8", 2, 2, {},
    ),
    Mutant(
        "slow_commit",
        "count no update of an iteration in which somebody was missing",
        "Whenever a rank dies, the others throw away what they have computed.",
        "S8", 2, 2, {"suspicions": 1},
    ),
    Mutant(
        "votes",
        "count every close as committed",
        "An update counts that one of the members says it never made.",
        "S8", 2, 2, {"failed_votes": 1},
    ),
    Mutant(
        "somebody_voted",
        "count a close as committed when nobody of the members goes on",
        "An update counts that nobody has.",
        "S8", 2, 1, {},
    ),
    # --- Clean-up ---
    Mutant(
        "spare_the_next",
        "delete the keys of the next barrier too (all but the one I know)",
        "A failed vote is deleted before anyone has read it, and the update counts.",
        "S8", 2, 2, {"failed_votes": 1},
    ),
    Mutant(
        "spare_the_list",
        "delete the list that the register points at",
        "Who learns the decision looks for its list for ever.",
        "L2", 2, 2, {}, liveness=True,
    ),
    Mutant(
        "clean_up",
        "delete nothing",
        "The store grows by three keys each iteration until it is full.",
        "L3", 2, 4, {},
    ),
    Mutant(
        "fresh_full",
        "use one `full` key for all iterations (a stale ready key, as the diagram has it)",
        "It decides nothing, but it stays behind for good and wakes every later wait at once: ranks ask the store without end instead.",
        "L3", 2, 3, {"suspicions": 1},
    ),
    Mutant(
        "clean_up_behind",
        "a rank that was left out does not clean up what it knew",
        "Each rejoin leaves keys in the store for good.",
        "L3", 2, 2, {"crashes": 1, "restarts": 1},
    ),
    Mutant(
        "clean_up_late",
        "a rank that was left out does not clean up the barrier at which it came too late",
        "Each frozen rank leaves keys in the store for good.",
        "L3", 2, 3, {"suspicions": 1},
    ),
    Mutant(
        "clean_up_restored",
        "a rank does not clean up the list that it restored in vain",
        "Each loss of the store leaves a list in it for good.",
        "L3", 1, 2, {"store_losses": 1, "crashes": 1, "restarts": 1},
    ),
)  # fmt: skip

EQUIVALENT: tuple[Mutant, ...] = (
    Mutant(
        "wake",
        "the winner does not set `full`",
        "Nothing but time: whoever waits may run out of patience at any moment, and finds the decision in the register.",
        "", 2, 2, {"crashes": 1, "join_timeouts": 1},
    ),
    Mutant(
        "outrun",
        "take part in a record that lists me, however far it is ahead",
        "Nothing: the list of iteration k+2 can name only those who arrived at k+1, so who is still at k is never in it.",
        "", 2, 3, {"suspicions": 1},
    ),
    Mutant(
        "replaced",
        "ask for the heartbeat of a member that a newer incarnation has replaced, too",
        "Nothing but time: it is dead and will fall silent, or it will see who has replaced it and end.",
        "", 2, 2, {"crashes": 1, "restarts": 1},
    ),
)  # fmt: skip
"""Their guard makes no difference to any property; `suffers` is the argument. The model must not be able to kill them."""

"""The counterexamples of the model's mutants that the intact library follows to the end, and why."""

INVISIBLE = {
    "nonce": "the trace draws the nonces, so the library takes those that the mutant draws",
    "fresh_timeout": "when the join timeout is over, the trace says and not the library's clock",
    "patience": "what is wrong is that nothing happens after the last step; each step before it is one of the library too",
}
"""By the guard that the mutant lacks."""


def why_invisible(missing: tuple[str, ...]) -> str | None:
    """Why a replay cannot tell the library from a mutant of the model that lacks these guards; None where it can."""
    if not missing or not set(missing) <= INVISIBLE.keys():
        return None
    return "; ".join(INVISIBLE[guard] for guard in missing)

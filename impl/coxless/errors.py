"""What can go wrong, one class for each thing that a caller can do something about."""


class CoxlessError(RuntimeError):
    """Base of every error that this library raises on its own account, bad arguments (ValueError) apart."""


class IterationTimeoutError(CoxlessError, TimeoutError):
    """The next iteration was not agreed on before the deadline. The message names the ranks that were missing, and why.

    Nothing is lost: calling `advance` again goes on waiting where this call stopped.
    """


class CrewEndedError(CoxlessError):
    """Every member of the crew has left, and those who are still here are fewer than min_ranks: the job is over."""


class SupersededError(CoxlessError):
    """A newer process of the same rank has taken this one's place (property S6). This process must end."""


class StoreUnreachableError(CoxlessError, ConnectionError):
    """The store did not answer before the deadline. Model state in memory is untouched."""


class CorruptStoreError(CoxlessError, ValueError):
    """A key of the store holds something that no member of the crew wrote. The message names the key and the value."""


class UnfitStoreError(CoxlessError, TypeError):
    """This kind of store cannot carry the protocol. The message says which can."""

"""The errors Osiris raises on purpose, named by what the worker does next.

OsirisError
├── Refused                     it cannot be done: a person is told the sentence, nothing is retried
│   └── NeedsOperator           it can be done once a person has mended something: it is parked
│       └── RepositoryUnavailable   nothing can be written there for now: the task goes on by itself
├── Unavailable                 the other side may recover: the same job is tried again later
│   ├── Occupied                other work of this machine has the room: it waits for that to end
│   └── LocalTimeout            this machine was too slow: a few tries, then a person is asked
├── LeaseLost                   another worker has the job: this one writes nothing more
└── RunEnded                    the normal end of a run; it carries the outcome

Anything else that is raised is a bug in Osiris.
"""


class OsirisError(Exception):
    """Base of every error we raise on purpose; its text is a sentence for a person."""


class Refused(OsirisError):
    """It will not be done, and trying again would change nothing; the text says why and what to
    do."""


class NeedsOperator(Refused):
    """It will not be done before a person has mended what the text says; then the same thing can be
    tried again."""


class RepositoryUnavailable(NeedsOperator):
    """Nothing can be written in the repository for now: archived, the App suspended or taken
    off."""


class LeaseLost(OsirisError):
    """This worker no longer holds what it works on; whoever holds it now goes on with it."""


class Unavailable(OsirisError):
    """It cannot be done now; try again in `retry_in` seconds (None: the worker's own growing
    pause).

    `made_progress` is True when the job came further than it was at its last try: earlier tries
    then count for nothing.
    """

    tries: int | None = None
    """How often it is worth trying; None: as often as the worker tries anything."""

    def __init__(
        self, sentence: str, *, retry_in: float | None = None, made_progress: bool = False
    ) -> None:
        super().__init__(sentence)
        self.retry_in = retry_in
        self.made_progress = made_progress


class Occupied(Unavailable):
    """Other work of this machine has the room that this needs, and will give it back: no try is the
    last one."""


class LocalTimeout(Unavailable):
    """Something of our own machine took too long: it may have too much to do now, or the thing may
    be too large for it. It is tried for some minutes before a person hears of it."""

    tries = 8


class RunEnded(OsirisError):
    """A run came to its end; `outcome` is one of `osiris.core.ports.models.CheckOutcome`."""

    def __init__(self, outcome: object) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome

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
    """The base of every error that Osiris raises on purpose; its text is a sentence for a
    person."""


class Refused(OsirisError):
    """It is not done, and another try would change nothing; the text is the reason and what to
    do."""


class NeedsOperator(Refused):
    """It cannot be done until a person has done what the text asks for; then it can be tried
    again."""


class RepositoryUnavailable(NeedsOperator):
    """Nothing can be written in the repository for now: it is archived, or the App is suspended or
    uninstalled."""


class LeaseLost(OsirisError):
    """This worker no longer holds what it works on; the worker that holds it now continues."""


class Unavailable(OsirisError):
    """It cannot be done now; try again in `retry_in` seconds (None: after the worker's own growing
    pauses).

    `made_progress` is True when the job came further than at its last try: earlier tries do not
    count then.
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
    """Other work of this machine has the room for this, and will give it back: any number of
    tries."""


class LocalTimeout(Unavailable):
    """Something on this machine took too long: it may be busy now, or the thing may be too large
    for it. It is tried for some minutes before a person is told."""

    tries = 8


class RunEnded(OsirisError):
    """A run ended; `outcome` is an `osiris.core.ports.models.Outcome`."""

    def __init__(self, outcome: object) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome

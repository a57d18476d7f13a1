"""What GitHub could not tell us: deliveries that never came in, and open tasks compared with GitHub as it is now."""

import asyncio
import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from osiris.bot.github.api_models import Pull, Submitted, Touched
from osiris.bot.github.app_auth import Attempt, Tokens
from osiris.bot.github.client import GitHub
from osiris.bot.github.event_resolver import Fact, Facts, issue_key, label_key, review_key
from osiris.bot.github.redelivery import Place, Sendings
from osiris.bot.github.webhook_payloads import IssueClosed, PullMoved, Reviewed, Unlabelled
from osiris.config.app_manifest import READ_EVENTS
from osiris.core import events as e
from osiris.core.bounded_dict import BoundedDict
from osiris.core.errors import OsirisError, Refused, Unavailable
from osiris.core.ports.storage import Inbox, Records
from osiris.core.task import HALTED, Task

log = logging.getLogger(__name__)

_MARK = "github/deliveries"
_KEPT = 3 * 86400.0  # seconds; GitHub sends nothing again that is older
_OVERLAP = 600.0  # seconds that are read again: what is under way is on record late
_AT_ONCE = 100  # deliveries asked for in one look
_SOON = 60.0  # seconds to the next look when there are more
_TO_BE_HEARD = 5.0  # seconds at most for what was asked for to come in, before what is seen is told as news
_LOOK = 0.1  # seconds between two looks whether it came in
_LONG = 60.0  # seconds of a pause that ends a look
_OUTAGES = 3  # one after the other end it as well
_MOST_KNOWN = 10_000  # reviews; one that is forgotten is read and noted again, which changes nothing
_ODD = (LookupError, TypeError, ValueError)  # an answer that is none of GitHub's: a page of a proxy


async def _always() -> bool:
    return True


Open = Sequence[tuple[Task, float]]
"""Tasks, and when each was made (seconds since 1970)."""


class Reconciler:
    """Every fact enters through the inbox, under a key that keeps it single; what is known already changes nothing."""

    def __init__(
        self,
        github: GitHub,
        tokens: Tokens,
        inbox: Inbox,
        records: Records,
        *,
        may: Callable[[], Awaitable[bool]] = _always,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`may` says whether it is this process that looks: of several, only one does."""
        self._github, self._tokens, self._inbox, self._records = github.patient(), tokens, inbox, records
        self._facts, self._may, self._clock = Facts(self._github), may, clock
        self._hint = asyncio.Event()
        self._places: dict[str, Place] = {}
        self._sendings = Sendings()
        self._known = BoundedDict[str, None](_MOST_KNOWN)  # reviews that were noted, or ask for nothing
        self._hints = self._outages = 0
        self._behind = self._looked = False

    async def run(self, every: float) -> None:
        """Look at once, then every `every` seconds or when hinted, until cancelled."""
        while True:
            self._hint.clear()
            [trouble] = await asyncio.gather(self._look_in_turn(), return_exceptions=True)
            if isinstance(trouble, OsirisError):
                log.warning("not all of GitHub could be looked at: %s", trouble)
            elif trouble is not None:
                log.error("a bug in looking at GitHub", exc_info=trouble)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(every, _SOON) if self._behind or not self._looked else every):
                    await self._hint.wait()

    async def _look_in_turn(self) -> None:
        self._looked = False
        if await self._may():
            self._looked = True
            await self.look()

    def soon(self, account: str = "") -> None:
        """A hint: the repositories of `account` ("": any) may be reached otherwise than before."""
        for repo, place in self._places.items():
            if account.lower() in ("", repo.partition("/")[0].lower()):
                place.forget()
        self._hints += 1
        self._hint.set()

    async def heard(self, key: str) -> None:
        """A fact of this key is known: it is not to be told again."""
        await self._records.remember(key, "heard")

    async def look(self) -> None:
        """First what GitHub has on record, in its order; then, when that had time to be heard, what there is to see.

        Raises Unavailable when GitHub is away, or asks for a long pause.
        """
        self._outages = 0
        with self._bearing("what GitHub delivered"):
            if asked := await self.request_deliveries():
                log.info("GitHub was asked to deliver %d events again", len(asked))
                await self._await_deliveries(asked)
        await self.compare()

    # ── deliveries ────────────────────────────────────────────────────────────────────────────────────────────────

    async def request_deliveries(self) -> list[str]:
        """Ask for what was sent in the last three days and never taken in, oldest first. Return which were asked for.

        A mark keeps what is settled from being read each time. While there is none yet, only what nobody took is asked
        for: a new database need not hear what an older one has heard.
        """
        now, mark = self._clock(), float(await self._records.recall(_MARK) or 0)
        self._sendings.take(await self._attempts(max(now - _KEPT, mark - _OVERLAP)))
        missing = await self._records.missing("github", self._sendings.guids())
        wanted = self._sendings.wanted(missing if mark else set(), now)
        self._behind = len(wanted) > _AT_ONCE
        asked = [attempt.guid for attempt in wanted[:_AT_ONCE] if await self._request_delivery(attempt, now)]
        if (settled := self._sendings.settled()) > mark:
            await self._records.remember(_MARK, str(settled))
        return asked

    async def _await_deliveries(self, guids: Sequence[str]) -> None:
        """Return when these deliveries have come in, or have had the time to."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TO_BE_HEARD
        while loop.time() < until:
            if not await self._records.missing("github", guids):
                return
            await asyncio.sleep(_LOOK)

    async def _attempts(self, since: float) -> list[Attempt]:
        found, cursor = await self._tokens.attempts()
        while cursor and found and found[-1].at >= since:
            more, cursor = await self._tokens.attempts(cursor)
            found += more
        return [attempt for attempt in found if attempt.at >= since and attempt.event in READ_EVENTS]

    async def _request_delivery(self, attempt: Attempt, now: float) -> bool:
        """Return whether GitHub will send it again."""
        try:
            await self._tokens.redeliver(attempt.id)
            self._sendings.asked(attempt.guid, now)
        except Refused as refused:
            self._sendings.give_up(attempt.guid)
            log.warning("delivery %s (%s) cannot be had again: %s", attempt.guid, attempt.event, refused)
            return False
        return True

    # ── comparing ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def compare(self) -> None:
        """Note what happened to open tasks and was not told.

        Mostly one conditional request for each repository; all of its tasks are looked at after a start, once an hour
        (a review need not touch what that request asks for), and when the repository may be reached otherwise.
        """
        self._outages, by_repo = 0, defaultdict[str, list[tuple[Task, float]]](list)
        for task, made in await self._records.living():
            by_repo[task.issue.repo].append((task, made))
        self._places = {repo: self._places.get(repo, Place()) for repo in by_repo}
        for repo, tasks in by_repo.items():
            with self._bearing(repo):
                await self._repository(repo, self._places[repo], tasks)

    @contextlib.contextmanager
    def _bearing(self, what: object) -> Iterator[None]:
        """One thing that cannot be looked at keeps nobody from the others. Raises Unavailable when nothing else can."""
        try:
            yield
            self._outages = 0
        except Unavailable as outage:
            self._outages += 1
            if (outage.retry_in or 0.0) > _LONG or self._outages >= _OUTAGES:
                raise
            log.warning("%s cannot be looked at now: %s", what, outage)
        except (OsirisError, *_ODD) as error:
            log.warning("%s cannot be looked at: %s", what, error)

    async def _repository(self, repo: str, place: Place, tasks: Open) -> None:
        touched = None
        if not place.is_due(self._clock()) and not any(task.barred for task, _ in tasks):
            touched = await self._touched(repo, place)
        if touched is None:
            await self._whole(repo, tasks)
            return
        news = place.news(touched)
        some = [(task, made) for task, made in tasks if not news.isdisjoint((task.issue.number, task.pull))]
        place.take(touched, owed=await self._tasks(some))

    async def _touched(self, repo: str, place: Place) -> Touched | None:
        """None when the repository is not to be had as before."""
        try:
            touched = await self._github.touched(repo, place.since, place.etag)
        except Refused:
            return None
        return None if touched.moved else touched

    async def _whole(self, repo: str, tasks: Open) -> None:
        """Where the repository is and whether it can be written; then all of its tasks."""
        hints = self._hints
        standing = await self._github.standing(repo)
        if standing.repo != repo:
            await self._records.rename(repo, standing.repo)
            log.info("%s is %s from now on", repo, standing.repo)
            tasks = [(_renamed(task, standing.repo), made) for task, made in tasks]
        if standing.trouble:
            await self._lost(tasks, standing.trouble)
            return
        await self._regained(tasks)
        place = self._places[standing.repo] = Place.at(standing.at)
        touched = await self._touched(standing.repo, place)  # before the tasks: what comes now comes again
        owed = await self._tasks(tasks)
        if touched is not None:
            place.take(touched, owed=owed, looked=self._clock() if hints == self._hints else 0.0)

    async def _lost(self, tasks: Open, reason: str) -> None:
        for task, _ in tasks:
            if not task.barred and task.state not in HALTED:
                await self._inbox.note(self._this_time(task, "lost"), e.AccessLost(issue=task.issue, reason=reason))

    async def _regained(self, tasks: Open) -> None:
        for task, _ in tasks:
            if task.barred:
                await self._inbox.note(self._this_time(task, "regained"), e.AccessRegained(issue=task.issue))

    def _this_time(self, task: Task, what: str) -> str:
        """A key for what may happen again and has no name of its own; told twice, it moves nothing."""
        return f"seen/{task.issue}/{what}/{self._clock():.0f}"

    # ── one task ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tasks(self, tasks: Open) -> set[int]:
        """Look at tasks; the issues of those that could not be looked at."""
        owed = {task.issue.number for task, _ in tasks}
        for task, made in tasks:
            with self._bearing(task.issue):
                await self._task(task, made)
                owed.discard(task.issue.number)
        return owed

    async def _task(self, task: Task, made: float) -> None:
        if task.pull is not None:
            pull = await self._github.pull(task.issue.repo, task.pull)
            if not pull.open:
                await self._pull_closed(task, pull)
                return
            await self._pull(task, pull)
        await self._issue(task, made)

    async def _pull_closed(self, task: Task, pull: Pull) -> None:
        repo = task.issue.repo
        by = pull.merged_by if pull.merged else (await self._github.issue(repo, pull.number)).closed_by
        notice = PullMoved(repo=repo, sender=by, by_bot=False, pull=pull.number, branch=pull.branch, how="closed")
        await self._note(self._facts.pull_moved(task, notice, pull))

    async def _pull(self, task: Task, pull: Pull) -> None:
        repo = task.issue.repo
        if pull.head != task.head:
            notice = PullMoved(repo=repo, sender="", by_bot=False, pull=pull.number, branch="", how="synchronize")
            await self._note(self._facts.pull_moved(task, notice, pull))
        reviews = await self._github.reviews(repo, pull.number)
        for review in reviews:
            if _is_news(task, pull, review, reviews):
                await self._review(task, pull, review)

    async def _review(self, task: Task, pull: Pull, review: Submitted) -> None:
        key = review_key(review.node, review.verdict)
        if key in self._known or await self._records.recall(key):
            return
        notice = Reviewed(
            repo=task.issue.repo,
            sender=review.by,
            by_bot=review.by_bot,
            pull=pull.number,
            branch=pull.branch,
            review=review.id,
            node=review.node,
            state=review.verdict,
            text=review.text,
            commit=review.commit,
        )
        await self._note(await self._facts.reviewed(task, notice))
        self._known[key] = None

    async def _issue(self, task: Task, made: float) -> None:
        ref = task.issue
        issue = await self._github.issue(ref.repo, ref.number)
        if not issue.open:
            if _since(made, issue.closed_at) and not await self._records.recall(issue_key(issue)):
                closed = IssueClosed(
                    repo=ref.repo, sender=issue.closed_by, by_bot=False, issue=ref, not_planned=issue.dropped
                )
                await self._note(await self._facts.issue_closed(closed))
            return
        label = (await self._github.policy(ref.repo)).label
        if label and label.casefold() not in issue.labels:
            await self._unlabelled(ref, label, made)

    async def _unlabelled(self, ref: e.IssueRef, label: str, made: float) -> None:
        """A task that a command began may never have had the label."""
        turn = await self._github.label_turn(ref.repo, ref.number, label)
        if turn is None or turn.on or turn.by_bot or not _since(made, turn.at):
            return
        if not await self._records.recall(label_key(turn)):
            notice = Unlabelled(repo=ref.repo, sender=turn.by, by_bot=False, issue=ref, label=label)
            await self._note(await self._facts.unlabelled(notice))

    async def _note(self, fact: Fact | None) -> None:
        if fact is None:
            return
        if fact.passes and await self._records.recall(fact.key):
            return  # it was delivered while we looked
        await self._inbox.note(fact.key, fact.event)
        if fact.passes:
            await self.heard(fact.key)


def _renamed(task: Task, repo: str) -> Task:
    return replace(task, issue=e.IssueRef(repo, task.issue.number))


def _since(made: float, at: float) -> bool:
    """Whether something happened after a task was made; GitHub's clock has whole seconds."""
    return at >= math.floor(made)


def _is_news(task: Task, pull: Pull, review: Submitted, reviews: Sequence[Submitted]) -> bool:
    """Whether a review may be one that the task has not taken in."""
    if review.by_bot or review.node in task.heard:
        return False
    match review.verdict:
        case "approved":
            return review.commit == pull.head and review.commit != task.approved
        case "dismissed":
            mine = [one for one in reviews if (one.by, one.commit) == (task.approved_by, task.approved)]
            return review in mine and all(one.verdict != "approved" for one in mine)
        case "changes_requested" | "commented":
            return True

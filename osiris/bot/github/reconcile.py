"""Comparison of open tasks with the present state of GitHub, after missed webhooks were
redelivered."""

import asyncio
import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from osiris.bot.github.api_models import PullSnapshot, SubmittedReview, TouchedItems
from osiris.bot.github.app_auth import AppAuth
from osiris.bot.github.client import GitHub
from osiris.bot.github.event_resolver import (
    EventResolver,
    ResolvedEvent,
    issue_key,
    label_key,
    review_key,
)
from osiris.bot.github.redelivery import MissedDeliveries
from osiris.bot.github.repository_state import RepositoryState
from osiris.bot.github.webhook_payloads import IssueClosed, PullStateChanged, Reviewed, Unlabelled
from osiris.core import events as e
from osiris.core.bounded_dict import BoundedDict
from osiris.core.errors import OsirisError, Refused, Unavailable
from osiris.core.ports.storage import Inbox, ReconcileState
from osiris.core.task import HALTED, Task

log = logging.getLogger(__name__)

_SOON = 60.0  # seconds to the next pass when more deliveries are missing
_LONG = 60.0  # seconds; a longer pause ends the pass
_OUTAGES = 3  # consecutive outages that end the pass
# reviews; one that was dropped is read and reported again, which changes nothing
_MOST_KNOWN = 10_000
# raised by an answer that is not GitHub's, such as the page of a proxy
_ODD = (LookupError, TypeError, ValueError)


async def _always_true() -> bool:
    return True


OpenTasks = Sequence[tuple[Task, float]]
"""Tasks, each with the time of its creation (seconds since 1970)."""


class Reconciler:
    """Compares open tasks with GitHub. Every event enters through the inbox under a key, so an
    event that is already known changes nothing."""

    def __init__(
        self,
        github: GitHub,
        auth: AppAuth,
        inbox: Inbox,
        state: ReconcileState,
        *,
        is_elected: Callable[[], Awaitable[bool]] = _always_true,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`is_elected` returns whether this process reconciles: of several, only one does."""
        self._github = github.with_low_priority()
        self._inbox = inbox
        self._state = state
        self._resolver = EventResolver(self._github)
        self._is_elected = is_elected
        self._clock = clock
        self._hint = asyncio.Event()
        self._repository_states: dict[str, RepositoryState] = {}
        self.missed_deliveries = MissedDeliveries(auth, state, clock)
        # reviews that were reported, or that ask for nothing
        self._known = BoundedDict[str, None](_MOST_KNOWN)
        self._hints = self._outages = 0
        self._has_run = False

    async def run(self, every: float) -> None:
        """Reconcile at once, then every `every` seconds or when requested, until cancelled."""
        while True:
            self._hint.clear()
            [trouble] = await asyncio.gather(self._run_if_elected(), return_exceptions=True)
            if isinstance(trouble, OsirisError):
                log.warning("not all of GitHub could be looked at: %s", trouble)
            elif trouble is not None:
                log.error("a bug in looking at GitHub", exc_info=trouble)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    min(every, _SOON)
                    if self.missed_deliveries.has_backlog or not self._has_run
                    else every
                ):
                    await self._hint.wait()

    async def _run_if_elected(self) -> None:
        self._has_run = False
        if await self._is_elected():
            self._has_run = True
            await self.run_once()

    def request(self, account: str = "") -> None:
        """Request a comparison: access to the repositories of `account` ("": any) may have
        changed."""
        for repo, state in self._repository_states.items():
            if account.lower() in ("", repo.partition("/")[0].lower()):
                state.mark_due()
        self._hints += 1
        self._hint.set()

    async def mark_seen(self, key: str) -> None:
        """Record that the event of this key is known, so that it is not reported again."""
        await self._state.set_value(key, "heard")

    async def run_once(self) -> None:
        """Request the missed deliveries and wait a few seconds for them, then compare what remains.

        The deliveries come first because they preserve the order of events. Raises Unavailable when
        GitHub is down or asks for a long pause.
        """
        self._outages = 0
        with self._tolerating_failures("what GitHub delivered"):
            if requested := await self.missed_deliveries.request_again():
                log.info("GitHub was asked to deliver %d events again", len(requested))
                await self.missed_deliveries.wait_until_received(requested)
        await self.compare_with_github()

    # ── comparing ─────────────────────────────────────────────────────────────────────────────────

    async def compare_with_github(self) -> None:
        """Report what happened to open tasks and was not delivered.

        Usually this takes one conditional request per repository. All of its tasks are compared
        after a start, once an hour (a review does not always change the result of that request),
        and when access to the repository may have changed.
        """
        self._outages = 0
        by_repo = defaultdict[str, list[tuple[Task, float]]](list)
        for task, created in await self._state.open_tasks():
            by_repo[task.issue.repo].append((task, created))
        self._repository_states = {
            repo: self._repository_states.get(repo, RepositoryState()) for repo in by_repo
        }
        for repo, tasks in by_repo.items():
            with self._tolerating_failures(repo):
                await self._compare_repository(repo, self._repository_states[repo], tasks)

    @contextlib.contextmanager
    def _tolerating_failures(self, what: object) -> Iterator[None]:
        """Log a failure, so that the other repositories and tasks are still compared. Raises
        Unavailable when none of them can be."""
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

    async def _compare_repository(
        self, repo: str, state: RepositoryState, tasks: OpenTasks
    ) -> None:
        touched = None
        if not state.is_due(self._clock()) and not any(task.read_only for task, _ in tasks):
            touched = await self._read_touched(repo, state)
        if touched is None:
            await self._compare_all(repo, tasks)
            return
        changed = state.find_changes(touched)
        some = [
            (task, created)
            for task, created in tasks
            if not changed.isdisjoint((task.issue.number, task.pull))
        ]
        state.record_touched(touched, pending=await self._compare_tasks(some))

    async def _read_touched(self, repo: str, state: RepositoryState) -> TouchedItems | None:
        """Return the touched items; None when the repository cannot be read or was renamed."""
        try:
            touched = await self._github.list_touched(repo, state.since, state.etag)
        except Refused:
            return None
        return None if touched.is_renamed else touched

    async def _compare_all(self, repo: str, tasks: OpenTasks) -> None:
        """Check the name of the repository and whether it can be written; then compare all of its
        tasks."""
        hints = self._hints
        status = await self._github.read_repository_status(repo)
        if status.repo != repo:
            await self._state.rename_repository(repo, status.repo)
            log.info("%s is %s from now on", repo, status.repo)
            tasks = [(_rename_task(task, status.repo), created) for task, created in tasks]
        if status.problem:
            await self._report_lost(tasks, status.problem)
            return
        await self._report_regained(tasks)
        state = self._repository_states[status.repo] = RepositoryState.create_at(status.at)
        # read before the tasks: what happens meanwhile is found again by the next pass
        touched = await self._read_touched(status.repo, state)
        pending = await self._compare_tasks(tasks)
        if touched is not None:
            state.record_touched(
                touched, pending=pending, checked_at=self._clock() if hints == self._hints else 0.0
            )

    async def _report_lost(self, tasks: OpenTasks, reason: str) -> None:
        for task, _ in tasks:
            if not task.read_only and task.state not in HALTED:
                await self._inbox.accept_fact(
                    self._occurrence_key(task, "lost"),
                    e.AccessLost(issue=task.issue, reason=reason),
                )

    async def _report_regained(self, tasks: OpenTasks) -> None:
        for task, _ in tasks:
            if task.read_only:
                await self._inbox.accept_fact(
                    self._occurrence_key(task, "regained"), e.AccessRegained(issue=task.issue)
                )

    def _occurrence_key(self, task: Task, what: str) -> str:
        """Return a key for an event that may recur and has no id on GitHub. Reporting such an event
        twice changes nothing."""
        return f"seen/{task.issue}/{what}/{self._clock():.0f}"

    # ── one task ──────────────────────────────────────────────────────────────────────────────────

    async def _compare_tasks(self, tasks: OpenTasks) -> set[int]:
        """Compare tasks; return the issues of those that could not be compared."""
        pending = {task.issue.number for task, _ in tasks}
        for task, created in tasks:
            with self._tolerating_failures(task.issue):
                await self._compare_task(task, created)
                pending.discard(task.issue.number)
        return pending

    async def _compare_task(self, task: Task, created: float) -> None:
        if task.pull is not None:
            pull = await self._github.read_pull(task.issue.repo, task.pull)
            if not pull.open:
                await self._report_closed_pull(task, pull)
                return
            await self._compare_pull(task, pull)
        await self._compare_issue(task, created)

    async def _report_closed_pull(self, task: Task, pull: PullSnapshot) -> None:
        repo = task.issue.repo
        by = (
            pull.merged_by
            if pull.merged
            else (await self._github.read_issue(repo, pull.number)).closed_by
        )
        notice = PullStateChanged(
            repo=repo, sender=by, by_bot=False, pull=pull.number, branch=pull.branch, how="closed"
        )
        await self._report_event(self._resolver.resolve_pull_change(task, notice, pull))

    async def _compare_pull(self, task: Task, pull: PullSnapshot) -> None:
        repo = task.issue.repo
        if pull.head != task.head:
            notice = PullStateChanged(
                repo=repo, sender="", by_bot=False, pull=pull.number, branch="", how="synchronize"
            )
            await self._report_event(self._resolver.resolve_pull_change(task, notice, pull))
        reviews = await self._github.list_reviews(repo, pull.number)
        for review in reviews:
            if _is_unseen_review(task, pull, review, reviews):
                await self._report_review(task, pull, review)

    async def _report_review(self, task: Task, pull: PullSnapshot, review: SubmittedReview) -> None:
        key = review_key(review.node, review.verdict)
        if key in self._known or await self._state.get_value(key):
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
        await self._report_event(await self._resolver.resolve_review(task, notice))
        self._known[key] = None

    async def _compare_issue(self, task: Task, created: float) -> None:
        ref = task.issue
        issue = await self._github.read_issue(ref.repo, ref.number)
        if not issue.open:
            if _is_after(created, issue.closed_at) and not await self._state.get_value(
                issue_key(issue)
            ):
                closed = IssueClosed(
                    repo=ref.repo,
                    sender=issue.closed_by,
                    by_bot=False,
                    issue=ref,
                    not_planned=issue.dropped,
                )
                await self._report_event(await self._resolver.resolve_issue_close(closed))
            return
        label = (await self._github.read_policy(ref.repo)).label
        if label and label.casefold() not in issue.labels:
            await self._report_unlabelled(ref, label, created)

    async def _report_unlabelled(self, ref: e.IssueRef, label: str, created: float) -> None:
        """Report the removal of the label. A task that a command started may never have had it."""
        change = await self._github.read_label_change(ref.repo, ref.number, label)
        if change is None or change.on or change.by_bot or not _is_after(created, change.at):
            return
        if not await self._state.get_value(label_key(change)):
            notice = Unlabelled(
                repo=ref.repo, sender=change.by, by_bot=False, issue=ref, label=label
            )
            await self._report_event(await self._resolver.resolve_unlabelled(notice))

    async def _report_event(self, fact: ResolvedEvent | None) -> None:
        if fact is None:
            return
        if fact.may_be_stale_later and await self._state.get_value(fact.key):
            return  # it was delivered during the comparison
        await self._inbox.accept_fact(fact.key, fact.event)
        if fact.may_be_stale_later:
            await self.mark_seen(fact.key)


def _rename_task(task: Task, repo: str) -> Task:
    return replace(task, issue=e.IssueRef(repo, task.issue.number))


def _is_after(created: float, at: float) -> bool:
    """Return whether something happened after a task was created; GitHub's times are whole
    seconds."""
    return at >= math.floor(created)


def _is_unseen_review(
    task: Task, pull: PullSnapshot, review: SubmittedReview, reviews: Sequence[SubmittedReview]
) -> bool:
    """Return whether a review may be one that the task has not processed."""
    if review.by_bot or review.node in task.seen_reviews:
        return False
    match review.verdict:
        case "approved":
            return review.commit == pull.head and review.commit != task.approved
        case "dismissed":
            mine = [
                one for one in reviews if (one.by, one.commit) == (task.approved_by, task.approved)
            ]
            return review in mine and all(one.verdict != "approved" for one in mine)
        case "changes_requested" | "commented":
            return True

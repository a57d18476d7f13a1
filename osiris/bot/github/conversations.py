"""Words of people on GitHub about a task: the threads of a review, and the conversation below the
issue and the pull request.

Roles are looked up: words of people without write access are no requests.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from osiris.bot.github import commands
from osiris.bot.github.api_models import ReviewComment
from osiris.bot.github.client import GitHub
from osiris.core.events import Actor
from osiris.core.review import Remark, Review, Thread, ThreadComment, cut_hunk
from osiris.core.task import Task

_MOST_THREADS = 1_000
_MOST_REMARKS = 300
_LONGEST_COMMAND = 300  # characters
_MOST_PEOPLE = 50  # whose role is looked up


async def add_threads(github: GitHub, repo: str, pull: int, id: int, review: Review) -> Review:
    """Return a review, which has GitHub's number `id`, with every thread that has a comment of it,
    each from its first comment to its last."""
    comments = await github.list_line_comments(repo, pull)
    grouped: dict[int, list[ReviewComment]] = {}
    for comment in comments:
        grouped.setdefault(comment.top, []).append(comment)
    ours = [group for group in grouped.values() if any(c.review == id for c in group)]
    shown = ours[:_MOST_THREADS]
    writers = await _find_writers(github, repo, (c.by for group in shown for c in group))
    threads = tuple(_build_thread(group, id, writers) for group in shown)
    return replace(review, threads=threads, more_threads=len(ours) - len(shown))


async def read_remarks(github: GitHub, task: Task) -> tuple[tuple[Remark, ...], tuple[str, ...]]:
    """Return what people with write access wrote below the issue and its pull request, and in
    sentences what is left out.

    Comments that are only a command, and those of bots, do not count; nor do reviews that a run
    answers.
    """
    repo = task.issue.repo
    said = await _read_comments(github, repo, task.issue.number)
    if task.pull is not None:
        said += await _read_comments(github, repo, task.pull)
        reviews = await github.list_reviews(repo, task.pull)
        said += [
            Remark(by=review.by, text=review.text)
            for review in reviews
            if review.text and not review.by_bot and review.node not in task.seen_reviews
        ]
    writers = await _find_writers(github, repo, (remark.by for remark in said))
    remarks = [remark for remark in said if remark.by in writers]
    left_out = []
    if outside := len(said) - len(remarks):
        noun = "1 comment" if outside == 1 else f"{outside} comments"
        left_out.append(f"Not given to the agent: {noun} of people without write access.")
    if older := len(remarks[:-_MOST_REMARKS]):
        left_out.append(f"{older} older comments of the conversation were not read.")
    return tuple(remarks[-_MOST_REMARKS:]), tuple(left_out)


async def _read_comments(github: GitHub, repo: str, number: int) -> list[Remark]:
    bot = await github.read_login()
    return [
        Remark(by=comment.by, text=comment.text)
        for comment in await github.list_conversation(repo, number)
        if not comment.by_bot and not _is_only_command(comment.text, bot)
    ]


async def _find_writers(github: GitHub, repo: str, logins: Iterable[str]) -> frozenset[str]:
    """Return those of the people who have write access; of very many, only the first are looked
    up."""
    bot = await github.read_login()
    people = [login for login in dict.fromkeys(logins) if login != bot][:_MOST_PEOPLE]
    actors = [Actor(login, await github.read_role(repo, login)) for login in people]
    found = [actor.login for actor in actors if actor.may_steer]
    return frozenset([*found, bot])


def _build_thread(group: Sequence[ReviewComment], review: int, writers: frozenset[str]) -> Thread:
    """Return a thread. Where its code was changed since, the lines are those of the commit that the
    comment was made on."""
    top = group[0]
    is_outdated = not top.is_on_file and top.line is None
    return Thread(
        path=top.path,
        line=top.original_line if is_outdated else top.line,
        start=top.original_start if is_outdated else top.start,
        side=top.side,
        hunk=cut_hunk(top.hunk),
        outdated=top.commit if is_outdated else "",
        comments=tuple(
            ThreadComment(
                by=comment.by,
                text=comment.text,
                is_new=comment.review == review,
                is_outside=comment.by not in writers,
            )
            for comment in group
        ),
    )


def _is_only_command(text: str, bot: str) -> bool:
    """Return whether a comment has a command and no other words; longer ones have some."""
    if len(text) > _LONGEST_COMMAND or len(text.strip().splitlines()) != 1:
        return False
    return commands.find_command(text, bot) is not None

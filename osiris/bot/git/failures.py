"""Failures of git's fetches and pushes, translated into what the worker does next.

git's own words decide: a refusal is for good, an outage is waited for, and words that are not known
are told to a person after a few tries.
"""

import re

from osiris.bot.git.runner import GitCommandFailed
from osiris.core.errors import NeedsOperator, Refused, Unavailable
from osiris.core.redaction import Redactor
from osiris.core.sanitize import clean_text, cut_text

OVERTAKEN = re.compile(r"non-fast-forward|fetch first|stale info|Updates were rejected")
"""git's messages when the tip of a branch is not the one that it knew."""

_CONFLICT = re.compile(r"'refs/([^'\n]{1,255})' exists; cannot create 'refs/([^'\n]{1,255})'")
_FOLDER_CONFLICT = re.compile(r"(?i)directory[ /]file conflict")
_PUSHED_BRANCH = re.compile(r"(?:refs/heads/|-> )([^\s':]{1,255})")
_INVALID_OBJECT = re.compile(r"fsck error")
_REJECTION = re.compile(r"\[(?:remote )?rejected\][^\n]*")
_UNCLEAR_REJECTION = re.compile(
    r"Internal Server Error|unpacker error|failed to update ref|cannot lock ref|\(failed\)"
    r"|remote failed to report status"
)
_NO_ACCESS = re.compile(
    r"returned error: 40[134]|Authentication failed|[Rr]epository [^\n]{0,200}\bnot found"
    r"|Repository not found|could not read Username"
)
_CLIENT_ERROR = re.compile(r"returned error: 4(?!08|29)\d\d")
_OUTAGE = re.compile(
    r"Internal Server Error|returned error: (?:5\d\d|408|429)|Could not resolve host"
    r"|Failed to connect|Couldn't connect|Connection (?:refused|reset|timed out)|timed out"
    r"|RPC failed|early EOF|hung up unexpectedly|unexpected disconnect|Empty reply|Recv failure"
    r"|Send failure|SSL_(?:read|write|connect|ERROR)|SSL connect error|TLS connection|HTTP/2 stream"
    r"|No space left on device|Resource temporarily unavailable|couldn't find remote ref"
    r"|\.lock': File exists|but expected|reference already exists"
)
"""Messages of git and curl about what passes without a person."""

_TELLING = re.compile(r"error: |fatal: |remote: \S|! ?\S*\[|!\s")
_FRAME = re.compile(
    r"error: failed to push some refs|fatal: (?:index-pack failed|fsck error in pack)"
    r"|remote: (?:Enumerating|Counting|Compressing|Resolving|Total|Processing)"
)
"""Lines that only repeat that something failed, and git's progress."""
_PREFIX = re.compile(r"!.*?(?=\[)|(?:remote: )?(?:error: |fatal: )?")
_HIDE = Redactor()
_LINES, _LENGTH = 5, 500  # lines and characters of git's words that a person is shown
_UNKNOWN_TRIES = 5  # about twenty seconds


def translate_failure(error: GitCommandFailed, what: str) -> Refused | Unavailable:
    """Return the error for a failed fetch or push: a permanent or a temporary one."""
    told = error.output
    words = quote_git(told)
    if conflict := find_conflict(told):
        return NeedsOperator(_describe_conflict(*conflict, what))
    if OVERTAKEN.search(told):
        return Refused(
            "somebody else pushed to the branch while I worked, and I never force a push"
        )
    if _INVALID_OBJECT.search(told):
        return Refused(
            f"git refuses the {what} because of an object in the history: {words}; somebody has to"
            " take this object out of the history"
        )
    rejection = _REJECTION.search(told)
    if rejection and not _UNCLEAR_REJECTION.search(rejection[0]):
        return NeedsOperator(f"GitHub rejected the {what}: {words}")
    if _NO_ACCESS.search(told):
        return NeedsOperator(
            f"GitHub does not let Osiris {what} here; the App needs Contents: write on this"
            f" repository; git says: {words}"
        )
    outage = Unavailable(f"git could not {what}: {words}")
    if told and (_CLIENT_ERROR.search(told) or not _OUTAGE.search(told)):
        outage.tries = _UNKNOWN_TRIES
    return outage


def find_conflict(told: str) -> tuple[str, str] | None:
    """Return the name of a ref that exists, and of the one that git cannot create beside it; None
    when git complains of something else. The names are those below `refs/`.

    git keeps refs as files: none can have the name of a folder of another.
    """
    if match := _CONFLICT.search(told):
        return match[1], match[2]
    if _FOLDER_CONFLICT.search(told) and (pushed := _PUSHED_BRANCH.search(told)):
        return f"heads/{pushed[1].partition('/')[0]}", f"heads/{pushed[1]}"
    return None


def _describe_conflict(blocking: str, wanted: str, what: str) -> str:
    kind = "branch" if blocking.startswith("heads/") else "ref"
    old, new = (
        clean_text(name.removeprefix("heads/")).replace("`", "'") for name in (blocking, wanted)
    )
    return (
        f"git could not {what}: a {kind} named `{old}` exists and stands in the way of `{new}`,"
        " because no name may be a folder of another; rename or delete"
        f" `{old}`, then `/osiris retry` tries it again"
    )


def quote_git(told: str) -> str:
    """Return git's complaint as one line for people: the telling lines of its output, rejections
    first, cleaned, cut, and without secrets."""
    lines = [line for line in map(str.strip, clean_text(told).splitlines()) if line]
    telling = [line for line in lines if _TELLING.match(line)]
    kept = [line for line in telling if not _FRAME.match(line)] or telling or lines
    kept.sort(key=lambda line: not line.startswith("!"))
    said = " / ".join(" ".join(_PREFIX.sub("", line, count=1).split()) for line in kept[:_LINES])
    return cut_text(_HIDE(said), _LENGTH) or "no answer"

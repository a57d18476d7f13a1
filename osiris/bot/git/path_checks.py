"""Checks of file names and links in work from a sandbox, for this system and others.

People who check out the branch may use Windows or macOS, where other names than `.git` are git's
own folder, and other characters than `/` lead out of the repository.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from osiris.bot.git.file_listings import NAME_LIMIT, PATH_LIMIT
from osiris.bot.git.runner import escape_path
from osiris.core.errors import Refused
from osiris.core.sanitize import clean_text, has_hidden

_SHORT_GIT = re.compile(r"git~\d+")
_DRIVE = re.compile(rb"[A-Za-z]:")
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3]) *(?:[.:].*)?",
    re.DOTALL,
)
"""Names of devices on Windows, with any text after a dot.

Microsoft, "Naming Files, Paths, and Namespaces".
"""
_SUSPICIOUS = re.compile(
    rb"(?i)[\\:\x80-\xff]|[. ](?:/|\Z)|git|(?:\A|/)(?:con|prn|aux|nul|com|lpt)"
)
"""Paths that do not match need no closer check, which takes longer."""


def check_changed_path(path: bytes, deny: Sequence[str], *, is_gone: bool) -> None:
    """Raise Refused for a path that is protected, too long, or has hidden characters."""
    if not is_gone and _is_too_long(path):
        raise Refused(f"the file name `{escape_path(path[:80])}…` is too long")
    name = escape_path(path)
    if not is_gone and hides_something(path.decode("utf-8", "surrogateescape")):
        what = "contains a control character or an invisible one"
        raise Refused(f"the file name `{name}` {what}")
    if is_protected(path, fold_prefixes(deny)):
        raise Refused(f"`{name}` is protected in this repository; a change there needs a person")


def fold_prefixes(deny: Sequence[str]) -> tuple[str, ...]:
    """Return the protected prefixes in the form that paths are compared with."""
    return tuple(_fold_case(prefix) for prefix in deny if prefix)


def is_protected(path: bytes, prefixes: tuple[str, ...]) -> bool:
    """Return whether a path, or a folder that would replace it, is below one of the folded
    `prefixes`.

    Systems that do not distinguish upper from lower case, or forms of one letter, would put it
    there too.
    """
    text = _fold_case(path.decode("utf-8", "surrogateescape"))
    return text.startswith(prefixes) or any(prefix.startswith(f"{text}/") for prefix in prefixes)


def _fold_case(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _is_too_long(path: bytes) -> bool:
    return len(path) > PATH_LIMIT or any(len(name) > NAME_LIMIT for name in path.split(b"/"))


def hides_something(name: str) -> bool:
    """Return whether a name contains a control character or an invisible one."""
    return has_hidden(name)


def find_bad_name(path: bytes) -> tuple[bytes, str] | None:
    """Return the longest prefix of a path that ends in a bad name, and why that is bad.

    A file is bad by its own name or by that of a folder that it is in.
    """
    if not _SUSPICIOUS.search(path):
        return None
    end = len(path)
    while end > 0:
        begin = path.rfind(b"/", 0, end) + 1
        if why := _describe_name(path[begin:end].decode("utf-8", "surrogateescape")):
            return path[:end], why
        end = begin - 1
    return None


def _describe_name(name: str) -> str:
    """Return why a name is bad on other systems; "" when it is not."""
    if "\\" in name:
        return "contains a backslash: on Windows it would be a path through other folders"
    if ":" in name:
        return "contains a colon: on Windows it would be a drive, or a hidden part of another file"
    if _is_git_folder(name):
        return "would be git's own folder on Windows or macOS"
    if name.endswith((".", " ")):
        return "ends with a dot or a space: on Windows it would be another name, without it"
    if _DEVICE.fullmatch(name.lower()):
        return "is the name of a device on Windows, not of a file"
    return ""


def _is_git_folder(name: str) -> bool:
    """Return whether a name is that of git's own folder, here or on another system."""
    seen = name if name.isascii() else clean_text(name)
    seen = seen.partition(":")[0].rstrip(" .").lower()
    return seen == ".git" or _SHORT_GIT.fullmatch(seen) is not None


def check_link(path: bytes, target: bytes) -> None:
    """Raise Refused for a link that leads out of the repository or into git's own folder.

    A link may lead up and then down. With a `..` after a name, it would lead to the parent of that
    name's target, as the name may be a link itself; so links that only go up first stay inside,
    whatever other links there are. Both rules are checked for how Linux and macOS read a link, and
    for how Windows does.
    """
    folders = path.count(b"/")
    parts = list(_split_target(target))
    into_git = any(_is_git_folder(part.decode("utf-8", "surrogateescape")) for part in parts)
    leaves = target.startswith(b"/") or _leaves_repository(parts, folders)
    if leaves or into_git or b"\0" in target or len(target) > PATH_LIMIT:
        raise Refused(f"the link `{escape_path(path)}` leaves the repository")
    for_windows = target.replace(b"\\", b"/")
    parts = [_strip_dots(part) for part in _split_target(for_windows)]
    into_git = any(_is_git_folder(part.decode("utf-8", "surrogateescape")) for part in parts)
    leaves = for_windows.startswith(b"/") or _leaves_repository(parts, folders)
    if leaves or into_git or _DRIVE.match(target):
        raise Refused(f"on Windows the link `{escape_path(path)}` leaves the repository")


def _split_target(target: bytes) -> Iterator[bytes]:
    return (part for part in target.split(b"/") if part not in (b"", b"."))


def _strip_dots(part: bytes) -> bytes:
    """Return a part of a path as Windows may read it, which drops dots and spaces at the end."""
    return part if part.strip(b". ") else b".."


def _leaves_repository(parts: Sequence[bytes], folders: int) -> bool:
    """Return whether a link in so many folders leads out of the outermost one, or up after a
    name."""
    up = next((n for n, part in enumerate(parts) if part != b".."), len(parts))
    return up > folders or b".." in parts[up:]

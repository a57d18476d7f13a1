"""The host keeps away from workspaces: who may touch a session's disk, start a program or say `git`
stands here.

It is read from the code, so a new way there is seen when it is written, and not when it is
attacked.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "osiris"
SOURCES = {
    str(path.relative_to(ROOT).with_suffix("")): path.read_text()
    for path in sorted(ROOT.rglob("*.py"))
    if "sample" not in path.parts
}

PLACES = {"host_path", "host_only", "below", "folder", "work", "home", "tmp", "disk"}
"""What the folders of a session are called in osiris/tools."""
FILE_CALLS = re.compile(
    r"open|(?:read|write)_(?:text|bytes)|walk|listdir|scandir|iterdir|r?glob|l?stat|exists|is_(?:file|dir|symlink|mount)"
    r"|chmod|chown|utime|mkdir|makedirs|rmdir|rmtree|unlink|remove|rename|replace|move|touch|truncate|resolve|realpath"
    r"|symlink|link|readlink|copy2?|copyfile|copytree"
)
TOUCHES: Mapping[str, str] = {
    "tools/sandbox/disks/disk:get_private_path": (
        "a /usr, an /etc or a devpts of the session's, where nobody can write"
    ),
    "tools/sandbox/disks/disk:_make_folders": "makes the folders, before anybody was there",
    "tools/sandbox/disks/disk:finalize": "`host_only`, which no jail sees",
    "tools/sandbox/disks/disk:seal": "`host_only`",
    "tools/sandbox/disks/disk:is_sealed": "`host_only`",
    "tools/sandbox/disks/disk:notes": "`host_only`",
    "tools/sandbox/disks/disk:unfreeze_index": "`host_only`",
    "tools/sandbox/disks/disk:restore_permissions": (
        "a folder in one of ours, so it is never a link"
    ),
    "tools/sandbox/disks/disk:probe_size_limit": "a disk of its own, to try the limits",
    "tools/sandbox/disks/tmpfs_disk:create": "where the disk is mounted",
    "tools/sandbox/disks/tmpfs_disk:remove": "where the disk was mounted",
    "tools/sandbox/disks/image_disk:create_over": "makes folders, before anybody was there",
    "tools/sandbox/disks/image_disk:find_sealed": "whether it is mounted",
    "tools/sandbox/disks/image_disk:remove": "where the disk was mounted",
    "tools/sandbox/disks/image_disk:reserve_paths": "where the disk is mounted",
    "tools/sandbox/disks/image_disk:_make_image": "the image itself",
    "tools/sandbox/disks/image_disk:_map_owner": (
        "the owner of a checkout that nothing is written to any more"
    ),
    "tools/sandbox/disks/image_disk:_mount_private": "where /usr, /etc and a devpts are mounted",
    "tools/sandbox/disks/image_disk:probe_separate_users": (
        "disks of its own, to try what the kernel can"
    ),
    "tools/sandbox/disks/image_disk:_mount_image": "where the disk is mounted",
    "tools/sandbox/disks/image_disk:_mount_overlay": "`host_only`, and whether it is mounted",
    "tools/sandbox/workspace/checkout:check_out": "`host_only`",
    "tools/sandbox/workspace/checkout:copy_index": "`host_only`",
    "tools/sandbox/session:build_read_only_spec": "`host_only`",
    "tools/sandbox/session:_write_output": "/tmp/outputs, by descriptors that follow no link",
    "tools/sandbox/session:_change_owner": "the same",
}
STARTS = re.compile(
    r"subprocess\.(?:run|Popen|call|check_call|check_output|getoutput)|asyncio\.create_subprocess_(?:exec|shell)"
    r"|os\.(?:system|popen|posix_spawnp?|fork|forkpty|exec\w+|spawn\w+)|pty\.(?:spawn|fork)"
)
STARTERS: Mapping[str, str] = {
    "bot/git/subprocesses": "git on repositories that no sandbox sees",
    "tools/sandbox/jail/process": "every jail",
    "tools/sandbox/probes/attempt": "what a machine can do",
    "tools/sandbox/guest/proxy_bridge": "inside a jail",
    "tools/sandbox/disks/disk": "mkfs, mount and umount",
    "tools/sandbox/disks/tmpfs_disk": "the holder of a disk",
    "tools/sandbox/disks/mounts": "umount, and a process that a user namespace is made with",
    "tools/sandbox/jail/jail_etc": "compiles our own helpers",
    "tools/sandbox/network/proxy_process": "the proxy of a session, with nothing of the worker's",
    "tools/sandbox/network/package_registries": (
        "asks this machine's package tools, in a folder of its own"
    ),
    "local/repository": "the person's own repository",
    "devhub/git_http": "the make-believe GitHub",
    "devhub/git_repository": "the make-believe GitHub",
    "playground/demo": "the demo",
}
SAYS_GIT: Mapping[str, str] = {
    "bot/git/runner": "on repositories that no sandbox sees",
    "factories": "the name of a folder",
    "tools/sandbox/workspace/checkout": "a script for a jail",
    "tools/sandbox/workspace/export": "a script for a jail",
    "tools/sandbox/workspace/setup_cache": "a script for a jail",
    "tools/sandbox/probes/capabilities": "inside a jail",
    "local/repository": "the person's own repository",
    "devhub/git_http": "the make-believe GitHub",
    "devhub/git_repository": "the make-believe GitHub",
    "devhub/routes/code": "the make-believe GitHub",
    "playground/demo": "the demo",
}
INSIDES = re.compile(
    r"osiris\.tools\.sandbox\.(?:session|disks\.(?!mounts)\w+|jail\.(?:process|bwrap_arguments|descriptors|first_program|jail_user)|workspace\.\w+)"
)
"""Modules that know where a session's files are; nobody else's business."""
GIT = re.compile(
    r"(?m)\A(?:\S*/)?git\Z|^[^#\n]*(?:^|[|(;&!=`{] *)(?:\S*/)?git -|\A(?:\S*/)?git [a-z-]+ |^ *git"
    r" .*\n"
)


def touches(place: str, source: str) -> Iterator[str]:
    """Functions that speak of a session's folder and do something with files."""
    if not place.startswith("tools/"):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            if named & PLACES and any(_is_file_call(part) for part in ast.walk(node)):
                yield f"{place}:{node.name}"


def _is_file_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return FILE_CALLS.fullmatch(node.func.attr) is not None
    return isinstance(node.func, ast.Name) and node.func.id == "open"


def starts(place: str, source: str) -> Iterator[str]:
    """Places where a program is started."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            words = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            words = [f"{node.value.id}.{node.attr}"]
        else:
            continue
        if any(STARTS.fullmatch(word) for word in words):
            yield place


def says_git(place: str, source: str) -> Iterator[str]:
    """Texts that start git: a list of words that begins with it, or a line of a script."""
    tree = ast.parse(source)
    told = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}
    texts = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    if any(GIT.search(node.value) for node in texts if id(node) not in told):
        yield place


def _has_docstring(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    return isinstance(body, list) and bool(body) and isinstance(body[0], ast.Expr)


def intrusions(place: str, source: str) -> Iterator[str]:
    """Modules outside of osiris/tools that know where a session's files are."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) and not place.startswith("tools/"):
            module = getattr(node, "module", None) or ""
            named = {
                module,
                *(alias.name for alias in node.names),
                *(f"{module}.{a.name}" for a in node.names),
            }
            yield from (f"{place}: {name}" for name in named if INSIDES.fullmatch(name))


RUNNERS: Mapping[str, str] = {"bot/git/runner": "sets the limits"}
"""Modules that may use `bot/git/subprocesses`."""
ENDLESS = re.compile(
    r"(?:math\.)?inf|float\(.*|sys\.maxsize|resource\.RLIM_INFINITY|None|-1|0|False"
)
BOUNDS = {"timeout", "most", "limits", "seconds", "cpu", "memory", "output", "file_size"}
"""What the bounds of git and of the programs of the host are called."""
HOST = ("bot/", "local/repository")
"""Where git works, on the host, on what strangers made."""


def runs(place: str, source: str) -> Iterator[str]:
    """Modules that use `bot/git/subprocesses`: git has limits because only one of them starts
    it."""
    for node in ast.walk(ast.parse(source)):
        module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
        names = (
            {alias.name for alias in node.names}
            if isinstance(node, ast.Import | ast.ImportFrom)
            else set()
        )
        whole = {*names, *(f"{module}.{name}" for name in names), str(module)}
        if place != "bot/git/subprocesses" and "osiris.bot.git.subprocesses" in whole:
            yield place


def unbounded(place: str, source: str) -> Iterator[str]:
    """Calls on the host that turn a bound off, have none, or take all that a program prints."""
    if not place.startswith(HOST):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from (
                f"{place}:{node.lineno}: {why}" for why in _lacks(ast.unparse(node.func), node)
            )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (
                f"{place}:{node.name}: {name} may be None" for name in _optional_bounds(node)
            )


def _lacks(name: str, call: ast.Call) -> Iterator[str]:
    words = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    bounded = name in {"git", "_git", "GitLimits", "replace", "subprocesses.run"}
    yield from (
        f"{word}={value}" for word, value in words.items() if bounded and _is_off(word, value)
    )
    if name == "subprocesses.run" and not {"timeout", "most"} <= set(words):
        yield "no bounds"
    takes_all = name.startswith("subprocess.") and name != "subprocess.Popen"
    if takes_all or name.endswith(".communicate") or "capture_output" in words:
        yield "takes all that is printed"
    if name.endswith("stdout.read") and not call.args:
        yield "reads to the end"


def _is_off(word: str, value: str) -> bool:
    return word in BOUNDS and ENDLESS.fullmatch(value) is not None


def _optional_bounds(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    typed = {arg.arg: ast.unparse(arg.annotation) for arg in arguments if arg.annotation}
    yield from (name for name, kind in typed.items() if name in BOUNDS and "None" in kind)


RULES = {
    touches: set(TOUCHES),
    starts: set(STARTERS),
    says_git: set(SAYS_GIT),
    intrusions: set(),
    runs: set(RUNNERS),
    unbounded: set(),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_host_keeps_away_from_workspaces(rule):
    """What is listed is there, and nothing else is."""
    assert {found for place, source in SOURCES.items() for found in rule(place, source)} == RULES[
        rule
    ]


@pytest.mark.parametrize(
    ("rule", "place", "planted"),
    [
        (
            touches,
            "tools/toolbox",
            "def f(session):\n    return (session.disk.work / 'README.md').read_text()",
        ),
        (
            touches,
            "tools/files",
            "def f(resources):\n    return os.listdir(resources.disk.host_path)",
        ),
        (
            touches,
            "tools/sandbox/session",
            "async def f(self):\n    with open(self._resources.spec.home) as file: ...",
        ),
        (touches, "tools/shell", "def f(disk):\n    shutil.rmtree(disk.folder / 'work')"),
        (starts, "tools/toolbox", "import subprocess\nsubprocess.run(['ls'])"),
        (starts, "agents/loop", "from subprocess import Popen\nPopen(['ls'])"),
        (starts, "agents/runner", "import asyncio\nasyncio.create_subprocess_exec('ls')"),
        (starts, "bot/github/effect_handlers", "import os\nstart = os.system\nstart('ls')"),
        (says_git, "tools/sandbox/session", "run(['git', '-C', work, 'add', '-A'])"),
        (says_git, "tools/sandbox/session", "run(['/usr/bin/git', 'status'])"),
        (says_git, "agents/runner", "run(f'cd {work} && git -C . status')"),
        (says_git, "agents/runner", "SCRIPT = '''\nset -e\ngit add -A\n'''"),
        (says_git, "agents/runner", "run('git status '.split())"),
        (intrusions, "agents/runner", "from osiris.tools.sandbox.disks.disk import Disk"),
        (intrusions, "bot/git/runner", "from osiris.tools.sandbox import session"),
        (intrusions, "bootstrap", "import osiris.tools.sandbox.disks.image_disk"),
        (runs, "bot/git/remote", "from osiris.bot.git import subprocesses"),
        (runs, "agents/runner", "from osiris.bot.git.subprocesses import run"),
        (runs, "bootstrap", "import osiris.bot.git.subprocesses"),
        (unbounded, "bot/git/repositories", "git(repo, 'ls-tree', limits=None)"),
        (
            unbounded,
            "bot/git/repositories",
            "git(repo, 'ls-tree', limits=GitLimits(output=float('inf')))",
        ),
        (unbounded, "bot/git/import_pack", "replace(_IMPORT, cpu=math.inf)"),
        (unbounded, "bot/git/import_pack", "_git(desk, 'ls-tree', timeout=None)"),
        (unbounded, "bot/git/remote", "GitLimits(file_size=sys.maxsize)"),
        (unbounded, "bot/git/runner", "subprocesses.run(argv, env=env)"),
        (unbounded, "bot/git/runner", "subprocesses.run(argv, env=env, timeout=3, most=None)"),
        (unbounded, "bot/git/subprocesses", "async def run(argv, *, most: int | None = None): ..."),
        (unbounded, "local/repository", "subprocess.run(['git'], capture_output=True)"),
        (unbounded, "local/repository", "process.communicate()"),
        (unbounded, "local/repository", "process.stdout.read()"),
    ],
)
def test_a_planted_way_there_is_found(rule, place, planted, verdict):
    assert list(rule(place, planted)) != []
    verdict("found", "it was planted")

"""The host keeps away from workspaces: who may touch a session's disk, start a program or say `git` stands here.

It is read from the code, so a new way there is seen when it is written, and not when it is attacked.
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

PLACES = {"here", "keep", "below", "folder", "work", "home", "tmp", "disk"}
"""What the folders of a session are called in osiris/tools."""
FILE_CALLS = re.compile(
    r"open|(?:read|write)_(?:text|bytes)|walk|listdir|scandir|iterdir|r?glob|l?stat|exists|is_(?:file|dir|symlink|mount)"
    r"|chmod|chown|utime|mkdir|makedirs|rmdir|rmtree|unlink|remove|rename|replace|move|touch|truncate|resolve|realpath"
    r"|symlink|link|readlink|copy2?|copyfile|copytree"
)
TOUCHES: Mapping[str, str] = {
    "tools/disk:own": "a /usr, an /etc or a devpts of the session's, where nobody can write",
    "tools/disk:_fill": "makes the folders, before anybody was there",
    "tools/disk:close": "`keep`, which no jail sees",
    "tools/disk:seal": "`keep`",
    "tools/disk:sealed": "`keep`",
    "tools/disk:notes": "`keep`",
    "tools/disk:settle": "`keep`",
    "tools/disk:open_up": "a folder in one of ours, so it is never a link",
    "tools/disk:fills_up": "a disk of its own, to try the limits",
    "tools/holder:make": "where the disk is mounted",
    "tools/holder:remove": "where the disk was mounted",
    "tools/image:make_over": "makes folders, before anybody was there",
    "tools/image:find": "whether it is mounted",
    "tools/image:remove": "where the disk was mounted",
    "tools/image:reserve": "where the disk is mounted",
    "tools/image:_make_image": "the image itself",
    "tools/image:_shown_as_ours": "the owner of a checkout that nothing is written to any more",
    "tools/image:_mount_own": "where /usr, /etc and a devpts are mounted",
    "tools/image:can_keep_apart": "disks of its own, to try what the kernel can",
    "tools/image:_mount": "where the disk is mounted",
    "tools/image:_lay": "`keep`, and whether it is mounted",
    "tools/checkout:check_out": "`keep`",
    "tools/checkout:copy_index": "`keep`",
    "tools/session:read_only": "`keep`",
    "tools/session:_keep": "/tmp/outputs, by descriptors that follow no link",
    "tools/session:_give": "the same",
    "tools/sandbox:_view": "opens a way out, and no file",
}
STARTS = re.compile(
    r"subprocess\.(?:run|Popen|call|check_call|check_output|getoutput)|asyncio\.create_subprocess_(?:exec|shell)"
    r"|os\.(?:system|popen|posix_spawnp?|fork|forkpty|exec\w+|spawn\w+)|pty\.(?:spawn|fork)"
)
STARTERS: Mapping[str, str] = {
    "bot/processes": "git on repositories that no sandbox sees",
    "tools/jail": "every jail",
    "tools/trial": "what a machine can do",
    "tools/bridge": "inside a jail",
    "tools/disk": "mkfs, mount and umount",
    "tools/holder": "the holder of a disk",
    "tools/mounts": "umount, and a process that a user namespace is made with",
    "tools/etc": "compiles our own helpers",
    "tools/proxy_process": "the proxy of a session, with nothing of the worker's",
    "tools/registries": "asks this machine's package tools, in a folder of its own",
    "local/repository": "the person's own repository",
    "devhub/git_http": "the make-believe GitHub",
    "devhub/repos": "the make-believe GitHub",
    "demo/story": "the demo",
}
SAYS_GIT: Mapping[str, str] = {
    "bot/git": "on repositories that no sandbox sees",
    "bootstrap": "the name of a folder",
    "tools/checkout": "a script for a jail",
    "tools/collect": "a script for a jail",
    "tools/setup": "a script for a jail",
    "tools/probes": "inside a jail",
    "local/repository": "the person's own repository",
    "devhub/git_http": "the make-believe GitHub",
    "devhub/repos": "the make-believe GitHub",
    "devhub/routes/code": "the make-believe GitHub",
    "demo/story": "the demo",
}
INSIDES = re.compile(r"osiris\.tools\.(?:disk|image|holder|layers|bubblewrap|jail|session|checkout|setup)")
"""Modules that know where a session's files are; nobody else's business."""
GIT = re.compile(r"(?m)\A(?:\S*/)?git\Z|^[^#\n]*(?:^|[|(;&!=`{] *)(?:\S*/)?git -|\A(?:\S*/)?git [a-z-]+ |^ *git .*\n")


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
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
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
            named = {module, *(alias.name for alias in node.names), *(f"{module}.{a.name}" for a in node.names)}
            yield from (f"{place}: {name}" for name in named if INSIDES.fullmatch(name))


RUNNERS: Mapping[str, str] = {"bot/git": "sets the limits"}
"""Modules that may use `bot/processes`."""
ENDLESS = re.compile(r"(?:math\.)?inf|float\(.*|sys\.maxsize|resource\.RLIM_INFINITY|None|-1|0|False")
BOUNDS = {"timeout", "most", "limits", "seconds", "cpu", "memory", "output", "file_size"}
"""What the bounds of git and of the programs of the host are called."""
HOST = ("bot/", "local/repository")
"""Where git works, on the host, on what strangers made."""


def runs(place: str, source: str) -> Iterator[str]:
    """Modules that use `bot/processes`: git has limits because only one of them starts it."""
    for node in ast.walk(ast.parse(source)):
        module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
        names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
        whole = {*names, *(f"{module}.{name}" for name in names), str(module)}
        if place != "bot/processes" and "osiris.bot.processes" in whole:
            yield place


def unbounded(place: str, source: str) -> Iterator[str]:
    """Calls on the host that turn a bound off, have none, or take all that a program prints."""
    if not place.startswith(HOST):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from (f"{place}:{node.lineno}: {why}" for why in _lacks(ast.unparse(node.func), node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (f"{place}:{node.name}: {name} may be None" for name in _optional_bounds(node))


def _lacks(name: str, call: ast.Call) -> Iterator[str]:
    words = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    bounded = name in {"git", "_git", "GitLimits", "replace", "processes.run"}
    yield from (f"{word}={value}" for word, value in words.items() if bounded and _is_off(word, value))
    if name == "processes.run" and not {"timeout", "most"} <= set(words):
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
    assert {found for place, source in SOURCES.items() for found in rule(place, source)} == RULES[rule]


@pytest.mark.parametrize(
    ("rule", "place", "planted"),
    [
        (touches, "tools/toolbox", "def f(session):\n    return (session.disk.work / 'README.md').read_text()"),
        (touches, "tools/files", "def f(ground):\n    return os.listdir(ground.disk.here)"),
        (touches, "tools/session", "async def f(self):\n    with open(self._ground.view.home) as file: ..."),
        (touches, "tools/shell", "def f(disk):\n    shutil.rmtree(disk.folder / 'work')"),
        (starts, "tools/toolbox", "import subprocess\nsubprocess.run(['ls'])"),
        (starts, "agents/loop", "from subprocess import Popen\nPopen(['ls'])"),
        (starts, "agents/run", "import asyncio\nasyncio.create_subprocess_exec('ls')"),
        (starts, "bot/perform", "import os\nstart = os.system\nstart('ls')"),
        (says_git, "tools/session", "run(['git', '-C', work, 'add', '-A'])"),
        (says_git, "tools/session", "run(['/usr/bin/git', 'status'])"),
        (says_git, "agents/run", "run(f'cd {work} && git -C . status')"),
        (says_git, "agents/run", "SCRIPT = '''\nset -e\ngit add -A\n'''"),
        (says_git, "agents/run", "run('git status '.split())"),
        (intrusions, "agents/run", "from osiris.tools.disk import Disk"),
        (intrusions, "bot/git", "from osiris.tools import session"),
        (intrusions, "bootstrap", "import osiris.tools.image"),
        (runs, "bot/depot", "from osiris.bot import processes"),
        (runs, "agents/run", "from osiris.bot.processes import run"),
        (runs, "bootstrap", "import osiris.bot.processes"),
        (unbounded, "bot/desk", "git(repo, 'ls-tree', limits=None)"),
        (unbounded, "bot/desk", "git(repo, 'ls-tree', limits=GitLimits(output=float('inf')))"),
        (unbounded, "bot/taking", "replace(_IMPORT, cpu=math.inf)"),
        (unbounded, "bot/taking", "_git(desk, 'ls-tree', timeout=None)"),
        (unbounded, "bot/depot", "GitLimits(file_size=sys.maxsize)"),
        (unbounded, "bot/git", "processes.run(argv, env=env)"),
        (unbounded, "bot/git", "processes.run(argv, env=env, timeout=3, most=None)"),
        (unbounded, "bot/processes", "async def run(argv, *, most: int | None = None): ..."),
        (unbounded, "local/repository", "subprocess.run(['git'], capture_output=True)"),
        (unbounded, "local/repository", "process.communicate()"),
        (unbounded, "local/repository", "process.stdout.read()"),
    ],
)
def test_a_planted_way_there_is_found(rule, place, planted, verdict):
    assert list(rule(place, planted)) != []
    verdict("found", "it was planted")

"""The host keeps away from workspaces: the lists of the code that may touch a session's disk, start
a program, or run git.

The tests read the code, so they find a new access when it is written, and not when it is attacked.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "osiris"
SOURCES = {
    str(path.relative_to(ROOT).with_suffix("")): path.read_text()
    for path in sorted(ROOT.rglob("*.py"))
    if "sample" not in path.parts
}

SESSION_FOLDERS = {"host_path", "host_only", "below", "folder", "work", "home", "tmp", "disk"}
"""Names of the folders of a session in osiris/tools."""
FILE_CALLS = re.compile(
    r"open|(?:read|write)_(?:text|bytes)|walk|listdir|scandir|iterdir|r?glob|l?stat|exists|is_(?:file|dir|symlink|mount)"
    r"|chmod|chown|utime|mkdir|makedirs|rmdir|rmtree|unlink|remove|rename|replace|move|touch|truncate|resolve|realpath"
    r"|symlink|link|readlink|copy2?|copyfile|copytree"
)
FILE_ACCESS: Mapping[str, str] = {
    "tools/sandbox/disks/disk:get_private_path": (
        "a /usr, an /etc or a devpts of the session, where no process can write"
    ),
    "tools/sandbox/disks/disk:_make_folders": "creates the folders, before any command has run",
    "tools/sandbox/disks/disk:finalize": "`host_only`, which no jail sees",
    "tools/sandbox/disks/disk:seal": "`host_only`",
    "tools/sandbox/disks/disk:is_sealed": "`host_only`",
    "tools/sandbox/disks/disk:notes": "`host_only`",
    "tools/sandbox/disks/disk:unfreeze_index": "`host_only`",
    "tools/sandbox/disks/disk:restore_permissions": (
        "a folder in one of ours, so it is never a link"
    ),
    "tools/sandbox/disks/disk:probe_size_limit": "a separate disk, to try the limits",
    "tools/sandbox/disks/tmpfs_disk:create": "where the disk is mounted",
    "tools/sandbox/disks/tmpfs_disk:remove": "where the disk was mounted",
    "tools/sandbox/disks/image_disk:create_over": "creates folders, before any command has run",
    "tools/sandbox/disks/image_disk:find_sealed": "whether it is mounted",
    "tools/sandbox/disks/image_disk:remove": "where the disk was mounted",
    "tools/sandbox/disks/image_disk:reserve_paths": "where the disk is mounted",
    "tools/sandbox/disks/image_disk:_make_image": "the image itself",
    "tools/sandbox/disks/image_disk:_map_owner": (
        "the owner of a checkout that no process writes to any more"
    ),
    "tools/sandbox/disks/image_disk:_mount_private": "where /usr, /etc and a devpts are mounted",
    "tools/sandbox/disks/image_disk:probe_separate_users": (
        "separate disks, to try what the kernel can do"
    ),
    "tools/sandbox/disks/image_disk:_mount_image": "where the disk is mounted",
    "tools/sandbox/disks/image_disk:_mount_overlay": "`host_only`, and whether it is mounted",
    "tools/sandbox/workspace/checkout:check_out": "`host_only`",
    "tools/sandbox/workspace/checkout:copy_index": "`host_only`",
    "tools/sandbox/session:build_read_only_spec": "`host_only`",
    "tools/sandbox/session:_write_output": "/tmp/outputs, through descriptors that follow no link",
    "tools/sandbox/session:_change_owner": "the same",
}
START_FUNCTIONS = re.compile(
    r"subprocess\.(?:run|Popen|call|check_call|check_output|getoutput)|asyncio\.create_subprocess_(?:exec|shell)"
    r"|os\.(?:system|popen|posix_spawnp?|fork|forkpty|exec\w+|spawn\w+)|pty\.(?:spawn|fork)"
)
PROGRAM_STARTS: Mapping[str, str] = {
    "tools/sandbox/guest/unchanged_files": "git, in a jail",
    "bot/git/subprocesses": "git in repositories that no sandbox sees",
    "tools/sandbox/jail/process": "every jail",
    "tools/sandbox/probes/attempt": "tries what the machine can do",
    "tools/sandbox/guest/proxy_bridge": "inside a jail",
    "tools/sandbox/disks/disk": "mkfs, mount and umount",
    "tools/sandbox/disks/tmpfs_disk": "the holder of a disk",
    "tools/sandbox/disks/mounts": "umount, and a process that creates a user namespace",
    "tools/sandbox/jail/jail_etc": "compiles our own helpers",
    "tools/sandbox/network/proxy_process": "the proxy of a session, without any secret of the worker",
    "tools/sandbox/network/package_registries": (
        "runs the package tools of this machine, in a separate folder"
    ),
    "local/repository": "the person's own repository",
    "devhub/git_http": "the make-believe GitHub",
    "devhub/git_repository": "the make-believe GitHub",
    "playground/demo": "the demo",
}
GIT_COMMANDS: Mapping[str, str] = {
    "bot/git/failures": "sentences about git",
    "bot/git/runner": "in repositories that no sandbox sees",
    "factories": "the name of a folder",
    "tools/sandbox/guest/unchanged_files": "runs in a jail",
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
SESSION_MODULES = re.compile(
    r"osiris\.tools\.sandbox\.(?:session|disks\.(?!mounts)\w+|jail\.(?:process|bwrap_arguments|descriptors|first_program|jail_user)|workspace\.\w+)"
)
"""Modules that know where a session's files are; code outside of osiris/tools may not use them."""
GIT_CALL = re.compile(
    r"(?m)\A(?:\S*/)?git\Z|^[^#\n]*(?:^|[|(;&!=`{] *)(?:\S*/)?git -|\A(?:\S*/)?git [a-z-]+ |^ *git"
    r" .*\n"
)


def find_file_access(module_path: str, source: str) -> Iterator[str]:
    """Yield the functions that use a folder of a session, and that call functions for files."""
    if not module_path.startswith("tools/"):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            attributes = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            if attributes & SESSION_FOLDERS and any(_is_file_call(part) for part in ast.walk(node)):
                yield f"{module_path}:{node.name}"


def _is_file_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return FILE_CALLS.fullmatch(node.func.attr) is not None
    return isinstance(node.func, ast.Name) and node.func.id == "open"


def find_program_starts(module_path: str, source: str) -> Iterator[str]:
    """Yield the module if it starts a program."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        else:
            continue
        if any(START_FUNCTIONS.fullmatch(name) for name in names):
            yield module_path


def find_git_commands(module_path: str, source: str) -> Iterator[str]:
    """Yield the module if a string in it runs git: as the first of a command's arguments, or in a
    line of a script."""
    tree = ast.parse(source)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}
    texts = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    if any(GIT_CALL.search(node.value) for node in texts if id(node) not in docstrings):
        yield module_path


def _has_docstring(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    return isinstance(body, list) and bool(body) and isinstance(body[0], ast.Expr)


def find_intrusions(module_path: str, source: str) -> Iterator[str]:
    """Yield the imports, outside of osiris/tools, of modules that know where a session's files
    are."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) and not module_path.startswith("tools/"):
            module = getattr(node, "module", None) or ""
            names = {
                module,
                *(alias.name for alias in node.names),
                *(f"{module}.{a.name}" for a in node.names),
            }
            yield from (
                f"{module_path}: {name}" for name in names if SESSION_MODULES.fullmatch(name)
            )


SUBPROCESS_USERS: Mapping[str, str] = {"bot/git/runner": "sets the limits"}
"""Modules that may import `bot/git/subprocesses`."""
NO_LIMIT = re.compile(
    r"(?:math\.)?inf|float\(.*|sys\.maxsize|resource\.RLIM_INFINITY|None|-1|0|False"
)
LIMIT_NAMES = {"timeout", "most", "limits", "seconds", "cpu", "memory", "output", "file_size"}
"""Names of the limits of git and of other programs of the host."""
HOST_MODULES = ("bot/", "local/repository")
"""Modules that run git on the host, on objects of strangers."""


def find_subprocess_users(module_path: str, source: str) -> Iterator[str]:
    """Yield the module if it imports `bot/git/subprocesses`: git has limits because only one module
    starts it."""
    for node in ast.walk(ast.parse(source)):
        module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
        names = (
            {alias.name for alias in node.names}
            if isinstance(node, ast.Import | ast.ImportFrom)
            else set()
        )
        full_names = {*names, *(f"{module}.{name}" for name in names), str(module)}
        if module_path != "bot/git/subprocesses" and "osiris.bot.git.subprocesses" in full_names:
            yield module_path


def find_unlimited_calls(module_path: str, source: str) -> Iterator[str]:
    """Yield the calls on the host that turn a limit off, that have none, or that read all that a
    program prints."""
    if not module_path.startswith(HOST_MODULES):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from (
                f"{module_path}:{node.lineno}: {reason}"
                for reason in _find_missing_limits(ast.unparse(node.func), node)
            )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (
                f"{module_path}:{node.name}: {name} may be None"
                for name in _find_optional_limits(node)
            )


def _find_missing_limits(name: str, call: ast.Call) -> Iterator[str]:
    options = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    sets_limits = name in {"git", "_git", "GitLimits", "replace", "subprocesses.run"}
    yield from (
        f"{option}={value}"
        for option, value in options.items()
        if sets_limits and _is_off(option, value)
    )
    if name == "subprocesses.run" and not {"timeout", "most"} <= set(options):
        yield "no bounds"
    reads_all = name.startswith("subprocess.") and name != "subprocess.Popen"
    if reads_all or name.endswith(".communicate") or "capture_output" in options:
        yield "takes all that is printed"
    if name.endswith("stdout.read") and not call.args:
        yield "reads to the end"


def _is_off(option: str, value: str) -> bool:
    return option in LIMIT_NAMES and NO_LIMIT.fullmatch(value) is not None


def _find_optional_limits(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    types = {arg.arg: ast.unparse(arg.annotation) for arg in arguments if arg.annotation}
    yield from (name for name, kind in types.items() if name in LIMIT_NAMES and "None" in kind)


@dataclass(frozen=True)
class Rule:
    """A function that finds code of one kind in a module's source, and the code of that kind that
    is allowed."""

    find: Callable[[str, str], Iterator[str]]
    allowed: Set[str]


RULES: Mapping[str, Rule] = {
    "touches": Rule(find_file_access, FILE_ACCESS.keys()),
    "starts": Rule(find_program_starts, PROGRAM_STARTS.keys()),
    "says_git": Rule(find_git_commands, GIT_COMMANDS.keys()),
    "intrusions": Rule(find_intrusions, frozenset()),
    "runs": Rule(find_subprocess_users, SUBPROCESS_USERS.keys()),
    "unbounded": Rule(find_unlimited_calls, frozenset()),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_host_keeps_away_from_workspaces(rule):
    """The code contains what is listed, and nothing else of that kind."""
    find = RULES[rule].find
    assert {
        code for module_path, source in SOURCES.items() for code in find(module_path, source)
    } == RULES[rule].allowed


@pytest.mark.parametrize(
    ("rule", "module_path", "planted"),
    [
        (
            "touches",
            "tools/toolbox",
            "def f(session):\n    return (session.disk.work / 'README.md').read_text()",
        ),
        (
            "touches",
            "tools/files",
            "def f(resources):\n    return os.listdir(resources.disk.host_path)",
        ),
        (
            "touches",
            "tools/sandbox/session",
            "async def f(self):\n    with open(self._resources.spec.home) as file: ...",
        ),
        ("touches", "tools/shell", "def f(disk):\n    shutil.rmtree(disk.folder / 'work')"),
        ("starts", "tools/toolbox", "import subprocess\nsubprocess.run(['ls'])"),
        ("starts", "agents/loop", "from subprocess import Popen\nPopen(['ls'])"),
        ("starts", "agents/runner", "import asyncio\nasyncio.create_subprocess_exec('ls')"),
        ("starts", "bot/github/effect_handlers", "import os\nstart = os.system\nstart('ls')"),
        ("says_git", "tools/sandbox/session", "run(['git', '-C', work, 'add', '-A'])"),
        ("says_git", "tools/sandbox/session", "run(['/usr/bin/git', 'status'])"),
        ("says_git", "agents/runner", "run(f'cd {work} && git -C . status')"),
        ("says_git", "agents/runner", "SCRIPT = '''\nset -e\ngit add -A\n'''"),
        ("says_git", "agents/runner", "run('git status '.split())"),
        ("intrusions", "agents/runner", "from osiris.tools.sandbox.disks.disk import Disk"),
        ("intrusions", "bot/git/runner", "from osiris.tools.sandbox import session"),
        ("intrusions", "bootstrap", "import osiris.tools.sandbox.disks.image_disk"),
        ("runs", "bot/git/remote", "from osiris.bot.git import subprocesses"),
        ("runs", "agents/runner", "from osiris.bot.git.subprocesses import run"),
        ("runs", "bootstrap", "import osiris.bot.git.subprocesses"),
        ("unbounded", "bot/git/repositories", "git(repo, 'ls-tree', limits=None)"),
        (
            "unbounded",
            "bot/git/repositories",
            "git(repo, 'ls-tree', limits=GitLimits(output=float('inf')))",
        ),
        ("unbounded", "bot/git/import_pack", "replace(_IMPORT, cpu=math.inf)"),
        ("unbounded", "bot/git/import_pack", "_git(desk, 'ls-tree', timeout=None)"),
        ("unbounded", "bot/git/remote", "GitLimits(file_size=sys.maxsize)"),
        ("unbounded", "bot/git/runner", "subprocesses.run(argv, env=env)"),
        ("unbounded", "bot/git/runner", "subprocesses.run(argv, env=env, timeout=3, most=None)"),
        (
            "unbounded",
            "bot/git/subprocesses",
            "async def run(argv, *, most: int | None = None): ...",
        ),
        ("unbounded", "local/repository", "subprocess.run(['git'], capture_output=True)"),
        ("unbounded", "local/repository", "process.communicate()"),
        ("unbounded", "local/repository", "process.stdout.read()"),
    ],
)
def test_a_planted_way_there_is_found(rule, module_path, planted, record_verdict):
    assert list(RULES[rule].find(module_path, planted)) != []
    record_verdict("found", "it was planted")

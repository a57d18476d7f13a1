"""Hostile set-ups: what a package that was installed leaves, to be taken for the agent's work or to
hide that.

What a set-up leaves serves all runs of a repository for days. Each row is a set-up, and what the
agent does after it.
"""

import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from osiris.core.errors import NeedsOperator
from osiris.core.ports.sandbox import Setup
from tests.attacks.conftest import SMALL

AGENT = "mkdir -p src; echo mine >agent.txt; echo mine >src/agent.py; echo changed >>README.md"
OURS = {"agent.txt", "src/agent.py", "README.md"}


@dataclass(frozen=True, kw_only=True)
class SetupCase:
    """`left` is what the set-up runs; `bad` are files that must not be in the work, and `good` some
    that must be."""

    left: str
    bad: tuple[str, ...] = ("evil.txt",)
    agent: str = AGENT
    good: tuple[str, ...] = ()


ANYBODYS = {
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}
ANYBODYS |= {"GIT_CONFIG_KEY_1": "user.name", "GIT_CONFIG_VALUE_1": "a"}
ANYBODYS |= {"GIT_CONFIG_KEY_2": "user.email", "GIT_CONFIG_VALUE_2": "a@x"}
ROOMY = replace(SMALL, inodes=20_000)
ROWS = {
    "rules in the home": SetupCase(
        left="mkdir -p ~/.config/git; echo 'evil*' >~/.config/git/ignore; echo bad >evil.txt"
    ),
    "rules in the home's configuration": SetupCase(
        left=(
            "git config --global core.excludesFile ~/rules; echo 'evil*' >~/rules; echo bad"
            " >evil.txt"
        )
    ),
    "rules in the workspace": SetupCase(left="printf '.gitignore\\nagent*\\n' >.gitignore"),
    "rules of a folder": SetupCase(left="echo 'agent*' >src/.gitignore"),
    "rules that hide all": SetupCase(left="echo '*' >.gitignore; echo '*' >src/.gitignore"),
    "rules in the clone": SetupCase(
        left="mkdir -p .git/info; echo 'evil*' >>.git/info/exclude; echo bad >evil.txt"
    ),
    "a rule of the repository that brings all back": SetupCase(
        left="echo bad >evil.txt", agent=f"{AGENT}; echo '!*' >.gitignore"
    ),
    "odd names": SetupCase(
        left=r"""for name in '!*' '#evil' 'evil ' $'evil\r' $'evil\n.txt' -evil --action=exec; do
            echo bad >"$name"; done""",
        bad=("!*", "#evil", "evil ", "evil\r", "evil\n.txt", "-evil", "--action=exec"),
    ),
    "folders that the agent needs": SetupCase(
        left="mkdir -p docs new/deep; echo bad >new/evil.txt; echo bad >new/deep/evil.txt",
        bad=("new/evil.txt", "new/deep/evil.txt"),
        agent=(
            f"{AGENT}; mkdir -p docs; echo mine | tee docs/guide.txt new/agent.txt"
            " >new/deep/agent.txt"
        ),
        good=("docs/guide.txt", "new/agent.txt", "new/deep/agent.txt"),
    ),
    "files that the agent makes": SetupCase(
        left="echo bad >src/util.py; echo bad >run; ln -s README.md link; echo bad >.gitignore",
        agent=(
            f"{AGENT}; echo mine >src/util.py; echo mine >run; rm -f link; echo mine >link; echo"
            " mine >.gitignore"
        ),
        good=("src/util.py", "run", "link", ".gitignore"),
    ),
    "attributes that change files": SetupCase(
        left="echo '* text working-tree-encoding=UTF-16' >.gitattributes"
    ),
}


PREPARE = """
git init -q; mkdir src; echo hello >README.md; echo x >src/app.py; git add -A; git commit -qm base
cp -a . ../clean
"""
NOTE = "git ls-files --others --exclude-standard --directory >../noted; rm -r .git; cp -a . ../left"
TAKE = """
cp -an ../left/. .
{agent}
cat ../noted >>.git/info/exclude
git add -A 2>/dev/null || true
"""


def naive_host(place: Path, row: SetupCase) -> dict[str, bytes]:
    """The files that a trusting host takes for the agent's work: it notes what a set-up left by
    git's own rules, and names as git shows them, and lays that into a clean checkout for an agent
    with a home of its own."""
    for folder in ("home", "other", "work", "left"):
        (place / folder).mkdir(parents=True)

    def run(script: str, folder: str = "work", home: str = "home") -> bytes:
        env = {
            "HOME": str(place / home),
            "PATH": "/usr/bin:/bin",
            "GIT_CONFIG_NOSYSTEM": "1",
            **ANYBODYS,
        }
        argv = ["/bin/bash", "-ec", script]
        return subprocess.run(
            argv, cwd=place / folder, env=env, check=True, capture_output=True
        ).stdout

    run(PREPARE)
    run(row.left)
    run(NOTE)
    run(TAKE.format(agent=row.agent), "clean", "other")
    paths = run("git ls-files -z", "clean", "other").decode().split("\0")[:-1]
    return {
        path: run(f"git cat-file blob {shlex.quote(f':{path}')}", "clean", "other")
        for path in paths
    }


@pytest.mark.parametrize("name", ROWS)
def test_what_a_set_up_leaves_is_none_of_the_agents_work(name, worker, verdict, tmp_path):
    row = ROWS[name]
    free = harm(naive_host(tmp_path / "trusting", row), row)
    assert free, "the attack itself is broken"
    setup = Setup(commands=(row.left,), hosts=(), key=f"{worker.who}-{name}")
    worker.create("prepared", setup=setup)
    try:
        assert worker.bash(row.agent, name="prepared").exit_code == 0
        pack = worker.place / "own" / "prepared.pack"
        tree = worker.ask("export", "prepared", worker.base, str(pack))
        assert harm(files_of(worker.repo, tree, pack, tmp_path), row) == ""
    finally:
        worker.ask("destroy", "prepared")
    verdict("all of the agent's is taken, and nothing else", f"a trusting host {free}")


def test_a_set_up_that_leaves_too_much(worker, verdict):
    """Each file that no rule covers is looked at whenever work is taken out."""
    many = 'cd src; python3 -c \'for n in range(5001): open(f"{n}.dat", "w").close()\''
    with pytest.raises(
        NeedsOperator,
        match=r"leaves more than 5,000 files .*, such as 'src/\d+\.dat'; let \.gitignore",
    ):
        worker.create(
            "much", limits=ROOMY, setup=Setup(commands=(many,), hosts=(), key=f"{worker.who}-much")
        )
    verdict("refused in a sentence", "git takes quadratic time for so many rules")


def test_what_the_repository_or_a_folder_ignores_itself_may_be_as_much_as_it_is(
    worker, verdict, tmp_path
):
    many = 'python3 -c \'for n in range(6000): open(f".venv/{n}.py", "w").close()\''
    left = f"mkdir .venv; echo '*' >.venv/.gitignore; {many}"
    worker.create(
        "prepared", limits=ROOMY, setup=Setup(commands=(left,), hosts=(), key=f"{worker.who}-venv")
    )
    try:
        assert worker.bash(f"test -e .venv/5999.py; {AGENT}", name="prepared").exit_code == 0
        pack = worker.place / "own" / "prepared.pack"
        tree = worker.ask("export", "prepared", worker.base, str(pack))
    finally:
        worker.ask("destroy", "prepared")
    work = files_of(worker.repo, tree, pack, tmp_path)
    assert set(work) >= OURS
    assert not any(path.startswith(".venv") for path in work)
    verdict("it is there, and none of the work", "-")


def harm(work: dict[str, bytes], row: SetupCase) -> str:
    """What went wrong; "" when nothing did."""
    if taken := sorted(set(work) & set(row.bad)):
        return f"took {taken[0]!r} for the agent's"
    if lost := sorted(
        path
        for path in {*OURS, *row.good}
        if not work.get(path, b"").endswith((b"mine\n", b"changed\n"))
    ):
        return f"lost or changed {lost[0]!r}"
    return ""


def files_of(repo: Path, tree: str, pack: Path, place: Path) -> dict[str, bytes]:
    """The files of a tree that came as a pack."""
    bare = place / "bare.git"
    shutil.copytree(repo, bare)
    env = {"PATH": "/usr/bin:/bin", **ANYBODYS}

    def git(*words: str, stdin: bytes | None = None) -> bytes:
        return subprocess.run(
            ["git", *words], cwd=bare, check=True, capture_output=True, input=stdin, env=env
        ).stdout

    git("index-pack", "--stdin", "--fix-thin", stdin=pack.read_bytes())
    paths = git("ls-tree", "-r", "-z", "--name-only", tree).decode().split("\0")[:-1]
    return {path: git("cat-file", "blob", f"{tree}:{path}") for path in paths}

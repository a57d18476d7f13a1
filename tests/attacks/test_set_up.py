"""Hostile setups: an installed package leaves files that could be imported as the agent's work, or
that could hide it.

The files of a setup serve all runs of a repository for days. Each row is a setup, and what the
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
from tests.attacks.conftest import SMALL_LIMITS

AGENT_SCRIPT = (
    "mkdir -p src; echo mine >agent.txt; echo mine >src/agent.py; echo changed >>README.md"
)
AGENT_FILES = {"agent.txt", "src/agent.py", "README.md"}


@dataclass(frozen=True, kw_only=True)
class SetupCase:
    """A setup that runs the script `setup`, and an agent that runs the script `agent`. Of `bad`, no
    file may be in the work; of `good`, all files must be."""

    setup: str
    bad: tuple[str, ...] = ("evil.txt",)
    agent: str = AGENT_SCRIPT
    good: tuple[str, ...] = ()


GIT_ENV = {
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}
GIT_ENV |= {"GIT_CONFIG_KEY_1": "user.name", "GIT_CONFIG_VALUE_1": "a"}
GIT_ENV |= {"GIT_CONFIG_KEY_2": "user.email", "GIT_CONFIG_VALUE_2": "a@x"}
SETUP_LIMITS = replace(SMALL_LIMITS, inodes=20_000)
SETUP_CASES = {
    "rules in the home": SetupCase(
        setup="mkdir -p ~/.config/git; echo 'evil*' >~/.config/git/ignore; echo bad >evil.txt"
    ),
    "rules in the home's configuration": SetupCase(
        setup=(
            "git config --global core.excludesFile ~/rules; echo 'evil*' >~/rules; echo bad"
            " >evil.txt"
        )
    ),
    "rules in the workspace": SetupCase(setup="printf '.gitignore\\nagent*\\n' >.gitignore"),
    "rules of a folder": SetupCase(setup="echo 'agent*' >src/.gitignore"),
    "rules that hide all": SetupCase(setup="echo '*' >.gitignore; echo '*' >src/.gitignore"),
    "rules in the clone": SetupCase(
        setup="mkdir -p .git/info; echo 'evil*' >>.git/info/exclude; echo bad >evil.txt"
    ),
    "a rule of the repository that brings all back": SetupCase(
        setup="echo bad >evil.txt", agent=f"{AGENT_SCRIPT}; echo '!*' >.gitignore"
    ),
    "odd names": SetupCase(
        setup=r"""for name in '!*' '#evil' 'evil ' $'evil\r' $'evil\n.txt' -evil --action=exec; do
            echo bad >"$name"; done""",
        bad=("!*", "#evil", "evil ", "evil\r", "evil\n.txt", "-evil", "--action=exec"),
    ),
    "folders that the agent needs": SetupCase(
        setup="mkdir -p docs new/deep; echo bad >new/evil.txt; echo bad >new/deep/evil.txt",
        bad=("new/evil.txt", "new/deep/evil.txt"),
        agent=(
            f"{AGENT_SCRIPT}; mkdir -p docs; echo mine | tee docs/guide.txt new/agent.txt"
            " >new/deep/agent.txt"
        ),
        good=("docs/guide.txt", "new/agent.txt", "new/deep/agent.txt"),
    ),
    "files that the agent makes": SetupCase(
        setup="echo bad >src/util.py; echo bad >run; ln -s README.md link; echo bad >.gitignore",
        agent=(
            f"{AGENT_SCRIPT}; echo mine >src/util.py; echo mine >run; rm -f link; echo mine >link; echo"
            " mine >.gitignore"
        ),
        good=("src/util.py", "run", "link", ".gitignore"),
    ),
    "attributes that change files": SetupCase(
        setup="echo '* text working-tree-encoding=UTF-16' >.gitattributes"
    ),
}


MAKE_REPOSITORIES = """
git init -q; mkdir src; echo hello >README.md; echo x >src/app.py; git add -A; git commit -qm base
cp -a . ../clean
"""
LIST_SETUP_FILES = (
    "git ls-files --others --exclude-standard --directory >../noted; rm -r .git; cp -a . ../left"
)
COMMIT_WORK = """
cp -an ../left/. .
{agent}
cat ../noted >>.git/info/exclude
git add -A 2>/dev/null || true
"""


def find_work_naively(root: Path, case: SetupCase) -> dict[str, bytes]:
    """Return the files that a trusting host imports as the agent's work. It lists the files of a
    setup with git, which follows the rules of the repository, and copies them into a clean checkout
    for an agent with another home."""
    for name in ("home", "other", "work", "left"):
        (root / name).mkdir(parents=True)

    def run_script(script: str, folder: str = "work", home: str = "home") -> bytes:
        env = {
            "HOME": str(root / home),
            "PATH": "/usr/bin:/bin",
            "GIT_CONFIG_NOSYSTEM": "1",
            **GIT_ENV,
        }
        argv = ["/bin/bash", "-ec", script]
        return subprocess.run(
            argv, cwd=root / folder, env=env, check=True, capture_output=True
        ).stdout

    run_script(MAKE_REPOSITORIES)
    run_script(case.setup)
    run_script(LIST_SETUP_FILES)
    run_script(COMMIT_WORK.format(agent=case.agent), "clean", "other")
    paths = run_script("git ls-files -z", "clean", "other").decode().split("\0")[:-1]
    return {
        path: run_script(f"git cat-file blob {shlex.quote(f':{path}')}", "clean", "other")
        for path in paths
    }


@pytest.mark.parametrize("name", SETUP_CASES)
def test_what_a_set_up_leaves_is_none_of_the_agents_work(name, worker, record_verdict, tmp_path):
    case = SETUP_CASES[name]
    control_harm = find_harm(find_work_naively(tmp_path / "trusting", case), case)
    assert control_harm, "the attack itself is broken"
    setup = Setup(commands=(case.setup,), hosts=(), key=f"{worker.user}-{name}")
    worker.create_session("prepared", setup=setup)
    try:
        assert worker.run_script(case.agent, name="prepared").exit_code == 0
        pack = worker.folder / "own" / "prepared.pack"
        tree = worker.call("export_work", "prepared", worker.base, str(pack))
        assert find_harm(read_files(worker.repo, tree, pack, tmp_path), case) == ""
    finally:
        worker.destroy_session("prepared")
    record_verdict(
        "all of the agent's is taken, and nothing else", f"a trusting host {control_harm}"
    )


def test_a_set_up_that_leaves_too_much(worker, record_verdict):
    """Each export examines every file that no rule covers."""
    create_files = 'cd src; python3 -c \'for n in range(5001): open(f"{n}.dat", "w").close()\''
    with pytest.raises(
        NeedsOperator,
        match=r"leaves more than 5,000 files .*, such as 'src/\d+\.dat'; let \.gitignore",
    ):
        worker.create_session(
            "much",
            limits=SETUP_LIMITS,
            setup=Setup(commands=(create_files,), hosts=(), key=f"{worker.user}-much"),
        )
    record_verdict("refused in a sentence", "git takes quadratic time for so many rules")


def test_what_the_repository_or_a_folder_ignores_itself_may_be_as_much_as_it_is(
    worker, record_verdict, tmp_path
):
    create_files = 'python3 -c \'for n in range(6000): open(f".venv/{n}.py", "w").close()\''
    script = f"mkdir .venv; echo '*' >.venv/.gitignore; {create_files}"
    setup = Setup(commands=(script,), hosts=(), key=f"{worker.user}-venv")
    worker.create_session("prepared", limits=SETUP_LIMITS, setup=setup)
    try:
        assert (
            worker.run_script(f"test -e .venv/5999.py; {AGENT_SCRIPT}", name="prepared").exit_code
            == 0
        )
        pack = worker.folder / "own" / "prepared.pack"
        tree = worker.call("export_work", "prepared", worker.base, str(pack))
    finally:
        worker.destroy_session("prepared")
    work = read_files(worker.repo, tree, pack, tmp_path)
    assert set(work) >= AGENT_FILES
    assert not any(path.startswith(".venv") for path in work)
    record_verdict("it is there, and none of the work", "-")


def find_harm(work: dict[str, bytes], case: SetupCase) -> str:
    """Return what is wrong with the imported work; "" when nothing is."""
    if bad_files := sorted(set(work) & set(case.bad)):
        return f"took {bad_files[0]!r} for the agent's"
    if lost_files := sorted(
        path
        for path in {*AGENT_FILES, *case.good}
        if not work.get(path, b"").endswith((b"mine\n", b"changed\n"))
    ):
        return f"lost or changed {lost_files[0]!r}"
    return ""


def read_files(repo: Path, tree: str, pack: Path, folder: Path) -> dict[str, bytes]:
    """Return the files of a tree in a pack."""
    bare = folder / "bare.git"
    shutil.copytree(repo, bare)
    env = {"PATH": "/usr/bin:/bin", **GIT_ENV}

    def run_git(*args: str, stdin: bytes | None = None) -> bytes:
        return subprocess.run(
            ["git", *args], cwd=bare, check=True, capture_output=True, input=stdin, env=env
        ).stdout

    run_git("index-pack", "--stdin", "--fix-thin", stdin=pack.read_bytes())
    paths = run_git("ls-tree", "-r", "-z", "--name-only", tree).decode().split("\0")[:-1]
    return {path: run_git("cat-file", "blob", f"{tree}:{path}") for path in paths}

"""`osiris local` as a user runs it, on the user's own repository."""

import asyncio
import contextlib
import functools
import io
import json
import os
import pty
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_vendors import server as loopback
from tests.flow.conftest import ANSWER, CHECK_COMMAND, FILES, FIX, plain_git, run, step, submit
from tests.forkserver import CommandProcess, osiris

STORY = {"runs": [run(*ANSWER, when="<review"), run(*FIX)]}
SLOW = {
    "runs": [run(FIX[0], step("run_command", command="sleep 2; echo slept"), submit("Mended."))]
}
WHO = ("-c", "user.name=ann", "-c", "user.email=ann@example.org")


@pytest.fixture
def user_repository(place: Path) -> Path:
    """Create a repository with one commit, a dirty work tree, an untracked file, a stash, and a
    hook that records its execution."""
    path = place / "mine"
    path.mkdir()
    plain_git("init", "-q", "-b", "trunk", str(path))
    for name, text in FILES.items():
        (path / name).write_text(text)
    plain_git("-C", str(path), "add", "-A")
    plain_git("-C", str(path), *WHO, "commit", "-qm", "One")
    (path / "README.md").write_text("stashed\n")
    plain_git("-C", str(path), *WHO, "stash", "-q")
    (path / "shop.py").write_text("def add(a, b):\n    return 'not mine to touch'\n")
    (path / "notes.txt").write_text("untracked\n")
    hook = path / ".git/hooks/reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch {place}/hook-ran\n")
    hook.chmod(0o755)
    return path


def write_script(place: Path, story: dict[str, Any]) -> str:
    (place / "script.yml").write_text(yaml.safe_dump(story))
    return f"scripted:{place / 'script.yml'}"


def snapshot_repository(path: Path) -> dict[str, bytes]:
    """Return everything in a repository except git's objects, which only grow."""
    files = (file for file in path.rglob("*") if file.is_file() and ".git/objects" not in str(file))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def create_environ(place: Path) -> dict[str, str]:
    return {"OSIRIS_DATA_DIR": str(place / "data")}


async def test_on_approval_a_branch_appears_and_nothing_else_changes(
    command, place: Path, user_repository: Path
):
    before = snapshot_repository(user_repository)
    code, out, err = await command(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(place, STORY),
        "--yes",
        **create_environ(place),
    )
    assert (code, err) == (0, ""), out
    assert "(branch trunk)" in out
    assert "2 paths have uncommitted changes: they are no part of the work" in out
    assert f"exit code 0   {CHECK_COMMAND}" in out
    assert (
        plain_git("-C", str(user_repository), "show", "osiris/1-add-subtracts:shop.py")
        == "def add(a, b):\n    return a + b\n"
    )
    assert (
        plain_git(
            "-C", str(user_repository), "log", "-1", "--format=%s", "osiris/1-add-subtracts~1"
        )
        == "One\n"
    )
    after = snapshot_repository(user_repository)
    assert not (place / "hook-ran").exists()
    new = {name for name in after if after[name] != before.get(name)}
    assert new <= {
        ".git/refs/heads/osiris/1-add-subtracts",
        ".git/logs/refs/heads/osiris/1-add-subtracts",
    }
    assert before.keys() <= after.keys()


@pytest.mark.long
async def test_a_second_request_takes_a_new_branch_name(
    command, place: Path, user_repository: Path
):
    plain_git("-C", str(user_repository), "branch", "osiris/1-add-subtracts")
    model = write_script(place, STORY)
    code, out, _ = await command(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        model,
        "--yes",
        **create_environ(place),
    )
    assert (code, "the branch osiris/1-add-subtracts-2 is in" in out) == (0, True)


@pytest.mark.long
async def test_without_a_branch_checked_out_the_commit_is_the_base(
    command, place: Path, user_repository: Path
):
    plain_git("-C", str(user_repository), "checkout", "-q", "--detach")
    model = write_script(place, STORY)
    code, out, _ = await command(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        model,
        "--yes",
        **create_environ(place),
    )
    assert (code, "(no branch)" in out) == (0, True)


@contextlib.contextmanager
def start_command(*args: str, **more: str) -> Iterator[tuple[CommandProcess, io.FileIO]]:
    """Start a command and yield it with its stdout."""
    reads, writes = os.pipe()
    command = CommandProcess(*args, environ=more, stdout=writes)
    os.close(writes)
    try:
        with open(reads, "rb", buffering=0) as stdout:
            yield command, stdout
    finally:
        command.kill()


async def read_until(stream: Any, words: str, seen: bytes = b"") -> str:
    """Read until `words` have appeared. Return `seen`, which was read before, and everything read
    since."""
    async with asyncio.timeout(60):
        while words.encode() not in seen:
            seen += (piece := await asyncio.to_thread(os.read, stream.fileno(), 4096))
            assert piece, f"it ended before it said {words!r}: {seen.decode()}"
    return seen.decode()


@pytest.mark.parametrize(
    "by", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL]
)
async def test_stopped_or_killed_it_goes_on_where_it_was(
    command, place: Path, user_repository: Path, by: signal.Signals
):
    model = write_script(place, SLOW)
    with start_command(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        model,
        "--yes",
        **create_environ(place),
    ) as (process, stdout):
        await read_until(stdout, "sleep 2")
        process.send_signal(by)
        out = (await asyncio.to_thread(stdout.read)).decode()
        code = process.wait(30)
    if by is signal.SIGINT:
        assert code == 130
        assert (
            f"Nothing is lost. Go on with:  osiris local {user_repository} --model {model}" in out
        )
    code, out, err = await command(
        "local", str(user_repository), "--model", model, "--yes", **create_environ(place)
    )
    assert (code, err) == (0, ""), out
    assert "edit_file" not in out  # finished steps are not repeated
    assert (
        plain_git("-C", str(user_repository), "show", "osiris/1-add-subtracts:shop.py")
        == "def add(a, b):\n    return a + b\n"
    )
    code, _, err = await command(
        "local", str(user_repository), "--model", model, "--yes", **create_environ(place)
    )
    assert code == 1
    assert "no unfinished work" in err


class PseudoTerminal:
    """A user at a pseudo-terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unread = ""

    def fileno(self) -> int:
        return self._fd

    async def wait_for_output(self, words: str) -> str:
        """Wait until `words` have appeared. Later output is kept for the next call."""
        seen = await read_until(self, words, self._unread.encode())
        before, _, self._unread = seen.partition(words)
        return before + words

    def type_line(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")


@contextlib.asynccontextmanager
async def run_at_terminal(
    *args: str, **more: str
) -> AsyncIterator[tuple[PseudoTerminal, CommandProcess]]:
    outer, inner = pty.openpty()
    env = {"TERM": "xterm", "BROWSER": "true", **more}
    process = CommandProcess(
        *args, environ=env, stdin=inner, stdout=inner, stderr=inner, at_terminal=True
    )
    os.close(inner)
    try:
        yield PseudoTerminal(outer), process
    finally:
        process.kill()
        os.close(outer)


@pytest.mark.long
async def test_a_person_asks_for_changes_leaves_comes_back_and_approves(
    place: Path, user_repository: Path
):
    args = ("local", str(user_repository), "add subtracts", "--model", write_script(place, STORY))
    async with run_at_terminal(*args, **create_environ(place)) as (terminal, process):
        await terminal.wait_for_output("[a]pprove")
        terminal.type_line("a question: does it add?")
        await terminal.wait_for_output("[a]pprove")
        terminal.type_line("c")
        await terminal.wait_for_output("What is to be changed?")
        terminal.type_line("Some notes, please.\n")
        assert "NOTES.md" in await terminal.wait_for_output("handed in 2 commit(s)")
        await terminal.wait_for_output("[a]pprove")
        terminal.type_line("q")
        await terminal.wait_for_output("Nothing is lost.")
        assert await asyncio.to_thread(process.wait) == 0
    async with run_at_terminal(
        "local", str(user_repository), "--model", args[-1], **create_environ(place)
    ) as (
        terminal,
        process,
    ):
        await terminal.wait_for_output("[a]pprove")
        terminal.type_line("a")
        await terminal.wait_for_output("git merge osiris/1-add-subtracts")
        assert await asyncio.to_thread(process.wait) == 0


@pytest.mark.long
async def test_nothing_that_was_typed_before_the_question_answers_it(
    place: Path, user_repository: Path
):
    async with run_at_terminal(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(place, SLOW),
        **create_environ(place),
    ) as (
        terminal,
        process,
    ):
        await terminal.wait_for_output("sleep 2")
        terminal.type_line("a")
        await terminal.wait_for_output("[x] drop it:")
        terminal.type_line("x")
        await terminal.wait_for_output("the work ended without a branch: you dropped it")
        assert await asyncio.to_thread(process.wait) == 1
    assert plain_git("-C", str(user_repository), "branch", "--list", "osiris/*") == ""


HIDING = {
    "a.py": "# nice \x1b]\nimport os\nos.system('curl')\n# \x07 end\n",
    "b.py": "# \x90\nEVIL = 1 # \u202e\r\n",
}


async def test_the_diff_hides_nothing(command, place: Path, user_repository: Path):
    story = {
        "runs": [
            run(
                *(step("write_file", path=p, content=text) for p, text in HIDING.items()),
                submit("Nice."),
            )
        ]
    }
    code, out, _ = await command(
        "local",
        str(user_repository),
        "x",
        "--model",
        write_script(place, story),
        "--yes",
        **create_environ(place),
    )
    assert code == 0
    for line in (
        "+# nice <U+001B>]",
        "+import os",
        "+os.system('curl')",
        "+# <U+0090>",
        "+EVIL = 1 # <U+202E>^M",
    ):
        assert line in out.splitlines()


@pytest.mark.long
async def test_a_env_file_of_the_repository_is_not_read(place: Path, user_repository: Path):
    (user_repository / ".env").write_text(
        "OSIRIS_NONSENSE=1\nOSIRIS_MODEL=scripted:/nonexistent\nOSIRIS_DATA_DIR=/nonexistent\n"
    )
    args = ("local", ".", "add subtracts", "--model", write_script(place, STORY), "--yes")
    result = await asyncio.to_thread(
        functools.partial(osiris, *args, cwd=user_repository, **create_environ(place))
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.long
async def test_the_repositorys_own_label_and_the_persons_own_model_count(
    command, place: Path, user_repository: Path
):
    (user_repository / ".github").mkdir()
    (user_repository / ".github/osiris.yml").write_text(
        "label: agent\nmodels: {build: 'anthropic:claude-sonnet-5'}\n"
    )
    plain_git("-C", str(user_repository), "add", ".github")
    plain_git("-C", str(user_repository), *WHO, "commit", "-qm", "Two")
    args = (
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(place, STORY),
        "--yes",
    )
    code, out, err = await command(*args, **create_environ(place))
    assert (code, err) == (0, ""), out
    (user_repository / ".github/osiris.yml").write_text("nonsense: 1\n")
    plain_git("-C", str(user_repository), *WHO, "commit", "-qam", "Three")
    code, _, err = await command(*args, **create_environ(place))
    assert (code, "`.github/osiris.yml`: nonsense" in err) == (1, True)


@pytest.mark.long
async def test_a_branch_that_is_in_the_way_loses_no_work(
    command, place: Path, user_repository: Path
):
    plain_git("-C", str(user_repository), "branch", "osiris")
    args = (
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(place, STORY),
        "--yes",
    )
    code, out, _ = await command(*args, **create_environ(place))
    assert (code, "the branch osiris-1-add-subtracts is in" in out) == (0, True)


@pytest.mark.long
async def test_the_base_is_the_commit_that_was_told_whatever_comes_meanwhile(
    command, place: Path, user_repository: Path
):
    from osiris.local.repository import LocalRepository
    from osiris.local.work_directories import REQUEST, WorkDirectories

    output = LocalRepository.open_at(user_repository).commit
    folder = WorkDirectories.for_repository(place / "data", user_repository).create_directory()
    (folder / REQUEST).write_text(
        json.dumps({"request": "add subtracts", "commit": output, "branch": "trunk"})
    )
    # it was killed before the copy was created
    plain_git("-C", str(user_repository), *WHO, "commit", "-qam", "Meanwhile")
    code, out, err = await command(
        "local",
        str(user_repository),
        "--model",
        write_script(place, STORY),
        "--yes",
        **create_environ(place),
    )
    assert (code, err) == (0, ""), out
    assert (
        plain_git("-C", str(user_repository), "rev-parse", "osiris/1-add-subtracts~1").strip()
        == output
    )


@pytest.mark.long
async def test_a_long_request_is_told_whole_and_a_longer_one_refused(
    command, place: Path, user_repository: Path
):
    story = {"runs": [run(*FIX, when="THE TAIL")]}
    args = ("--model", write_script(place, story), "--yes")
    code, out, err = await command(
        "local",
        str(user_repository),
        "x" * 400 + " THE TAIL\nand more",
        *args,
        **create_environ(place),
    )
    assert (code, err) == (0, ""), out
    code, _, err = await command(
        "local", str(user_repository), "x" * 70_000, *args, **create_environ(place)
    )
    assert (code, "more than 60000 characters" in err) == (1, True)


@pytest.mark.long
async def test_an_answer_in_the_browser_is_as_good(place: Path, user_repository: Path):
    import httpx

    args = ("local", str(user_repository), "add subtracts", "--model", write_script(place, STORY))
    async with run_at_terminal(*args, **create_environ(place)) as (terminal, process):
        await terminal.wait_for_output("[a]pprove")
        terminal.type_line("o")
        shown = await terminal.wait_for_output("/pull/2")
        address = next(word for word in shown.split() if word.startswith("http"))
        async with httpx.AsyncClient(follow_redirects=True, trust_env=False) as browser:
            page = await browser.get(address)
            origin = {"Origin": address.partition("/_enter")[0]}
            assert page.status_code == 200
            sent = await browser.post(
                f"{page.url}/review", data={"event": "APPROVE", "body": ""}, headers=origin
            )
            assert sent.status_code == 200
        await terminal.wait_for_output("git merge osiris/1-add-subtracts")
        assert await asyncio.to_thread(process.wait) == 0


async def test_what_cannot_be_worked_on_is_a_sentence(command, place: Path, user_repository: Path):
    model = write_script(place, STORY)
    (place / "plain").mkdir()
    (place / "empty").mkdir()
    plain_git("init", "-q", str(place / "empty"))
    plain_git("clone", "-q", "--depth=1", f"file://{user_repository}", str(place / "shallow"))
    for path, output in {
        "missing": "is not a folder",
        "plain": "is not in a git repository",
        "empty": "has no commit yet",
        "shallow": "is a shallow clone; `git fetch --unshallow` makes it whole",
    }.items():
        code, _, err = await command(
            "local", str(place / path), "x", "--model", model, "--yes", **create_environ(place)
        )
        assert (code, output in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.parametrize(
    ("args", "output"),
    [
        (("x", "--yes"), "no model is chosen; give --model"),
        (
            ("x", "--yes", "--model", "nobody:x"),
            "there is no model 'nobody:x' here; configured are",
        ),
        (
            ("x", "--yes", "--model", "anthropic:claude-sonnet-5"),
            "there is no model 'anthropic:claude-sonnet-5' here",
        ),
        (("x", "--model", "scripted:none.yml"), "there is no terminal to ask you on"),
        (("x", "--yes", "--model", "scripted:none.yml"), "the script none.yml cannot be read"),
        (("--yes", "--model", "SCRIPT"), "there is no unfinished work here"),
    ],
)
async def test_what_is_missing_is_a_sentence(
    command, place: Path, user_repository: Path, args: tuple[str, ...], output: str
):
    given = [write_script(place, STORY) if word == "SCRIPT" else word for word in args]
    code, _, err = await command("local", str(user_repository), *given, **create_environ(place))
    assert (code, output in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.long
async def test_over_a_vendors_wire_with_a_budget_that_is_spent_and_granted_again(
    command, place: Path, user_repository: Path
):
    async with loopback.serving(STORY) as vendors:
        environs = {**create_environ(place), **vendors.environ("anthropic")}
        code, _, err = await command(
            "local", str(user_repository), "add subtracts", "--yes", "--budget", "0.01", **environs
        )
        assert (code, err) == (0, "")
        plain_git("-C", str(user_repository), "branch", "-D", "osiris/1-add-subtracts")
        tight = ("local", str(user_repository), "add subtracts", "--yes")
        code, _, err = await command(*tight, **environs, OSIRIS_RUN_USD="0.001")
        assert (code, "the budget of 0.001 US dollars is spent. Nothing is lost." in err) == (
            1,
            True,
        ), err
        code, out, err = await command(
            "local", str(user_repository), "--yes", "--budget", "1", **environs
        )
        assert (code, err) == (0, ""), out
        assert "US dollars." in out
        code, _, err = await command(*tight, **{**environs, "ANTHROPIC_API_KEY": "sk-wrong-canary"})
        assert (code, "the model refused the key" in err, "canary" in err) == (1, True, False)

"""`osiris local`, as users run it on their own repositories."""

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
from tests.flow.conftest import (
    ANSWER_STEPS,
    CHECK_COMMAND,
    FILES,
    FIX_STEPS,
    build_run,
    build_step,
    build_submit_step,
    run_plain_git,
)
from tests.forkserver import CommandProcess, run_osiris

SCRIPT = {"runs": [build_run(*ANSWER_STEPS, when="<review"), build_run(*FIX_STEPS)]}
SLOW_SCRIPT = {
    "runs": [
        build_run(
            FIX_STEPS[0],
            build_step("run_command", command="sleep 2; echo slept"),
            build_submit_step("Mended."),
        )
    ]
}
IDENTITY = ("-c", "user.name=ann", "-c", "user.email=ann@example.org")


@pytest.fixture
def user_repository(folder: Path) -> Path:
    """Create a repository with one commit, a changed file, an untracked file, a stash, and a hook
    that records its execution."""
    path = folder / "mine"
    path.mkdir()
    run_plain_git("init", "-q", "-b", "trunk", str(path))
    for name, text in FILES.items():
        (path / name).write_text(text)
    run_plain_git("-C", str(path), "add", "-A")
    run_plain_git("-C", str(path), *IDENTITY, "commit", "-qm", "One")
    (path / "README.md").write_text("stashed\n")
    run_plain_git("-C", str(path), *IDENTITY, "stash", "-q")
    (path / "shop.py").write_text("def add(a, b):\n    return 'not mine to touch'\n")
    (path / "notes.txt").write_text("untracked\n")
    hook = path / ".git/hooks/reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch {folder}/hook-ran\n")
    hook.chmod(0o755)
    return path


def write_script(folder: Path, script: dict[str, Any]) -> str:
    """Write a script into a file. Return the name of the model that plays it."""
    (folder / "script.yml").write_text(yaml.safe_dump(script))
    return f"scripted:{folder / 'script.yml'}"


def snapshot_repository(path: Path) -> dict[str, bytes]:
    """Return the content of all files of a repository, without git's objects, which only grow."""
    files = (file for file in path.rglob("*") if file.is_file() and ".git/objects" not in str(file))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def build_environ(folder: Path) -> dict[str, str]:
    return {"OSIRIS_DATA_DIR": str(folder / "data")}


async def test_on_approval_a_branch_appears_and_nothing_else_changes(
    run_cli, folder: Path, user_repository: Path
):
    before = snapshot_repository(user_repository)
    code, out, err = await run_cli(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(folder, SCRIPT),
        "--yes",
        **build_environ(folder),
    )
    assert (code, err) == (0, ""), out
    assert "(branch trunk)" in out
    assert "2 paths have uncommitted changes: they are no part of the work" in out
    assert f"exit code 0   {CHECK_COMMAND}" in out
    assert (
        run_plain_git("-C", str(user_repository), "show", "osiris/1-add-subtracts:shop.py")
        == "def add(a, b):\n    return a + b\n"
    )
    assert (
        run_plain_git(
            "-C", str(user_repository), "log", "-1", "--format=%s", "osiris/1-add-subtracts~1"
        )
        == "One\n"
    )
    after = snapshot_repository(user_repository)
    assert not (folder / "hook-ran").exists()
    changed_names = {name for name in after if after[name] != before.get(name)}
    assert changed_names <= {
        ".git/refs/heads/osiris/1-add-subtracts",
        ".git/logs/refs/heads/osiris/1-add-subtracts",
    }
    assert before.keys() <= after.keys()


@pytest.mark.long
async def test_a_second_request_takes_a_new_branch_name(
    run_cli, folder: Path, user_repository: Path
):
    run_plain_git("-C", str(user_repository), "branch", "osiris/1-add-subtracts")
    model = write_script(folder, SCRIPT)
    code, out, _ = await run_cli(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        model,
        "--yes",
        **build_environ(folder),
    )
    assert (code, "the branch osiris/1-add-subtracts-2 is in" in out) == (0, True)


@pytest.mark.long
async def test_without_a_branch_checked_out_the_commit_is_the_base(
    run_cli, folder: Path, user_repository: Path
):
    run_plain_git("-C", str(user_repository), "checkout", "-q", "--detach")
    model = write_script(folder, SCRIPT)
    code, out, _ = await run_cli(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        model,
        "--yes",
        **build_environ(folder),
    )
    assert (code, "(no branch)" in out) == (0, True)


@contextlib.contextmanager
def start_command(*args: str, **more: str) -> Iterator[tuple[CommandProcess, io.FileIO]]:
    """Start a command. Provide the process and its stdout."""
    read_fd, write_fd = os.pipe()
    process = CommandProcess(*args, environ=more, stdout=write_fd)
    os.close(write_fd)
    try:
        with open(read_fd, "rb", buffering=0) as stdout:
            yield process, stdout
    finally:
        process.kill()


async def read_until(stream: Any, text: str, received: bytes = b"") -> str:
    """Read from a stream until `text` has appeared. Return the output, which begins with
    `received`: what the caller has already read."""
    async with asyncio.timeout(60):
        while text.encode() not in received:
            received += (chunk := await asyncio.to_thread(os.read, stream.fileno(), 4096))
            assert chunk, f"the output ended before {text!r}: {received.decode()}"
    return received.decode()


@pytest.mark.parametrize(
    "signal_number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL]
)
async def test_stopped_or_killed_it_goes_on_where_it_was(
    run_cli, folder: Path, user_repository: Path, signal_number: signal.Signals
):
    model = write_script(folder, SLOW_SCRIPT)
    with start_command(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        model,
        "--yes",
        **build_environ(folder),
    ) as (process, stdout):
        await read_until(stdout, "sleep 2")
        process.send_signal(signal_number)
        out = (await asyncio.to_thread(stdout.read)).decode()
        code = process.wait(30)
    if signal_number is signal.SIGINT:
        assert code == 130
        assert (
            f"Nothing is lost. Go on with:  osiris local {user_repository} --model {model}" in out
        )
    code, out, err = await run_cli(
        "local", str(user_repository), "--model", model, "--yes", **build_environ(folder)
    )
    assert (code, err) == (0, ""), out
    assert "edit_file" not in out  # finished steps are not repeated
    assert (
        run_plain_git("-C", str(user_repository), "show", "osiris/1-add-subtracts:shop.py")
        == "def add(a, b):\n    return a + b\n"
    )
    code, _, err = await run_cli(
        "local", str(user_repository), "--model", model, "--yes", **build_environ(folder)
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

    async def wait_for_output(self, text: str) -> str:
        """Wait until `text` has appeared. Return the output up to it; the next call returns the
        rest."""
        received = await read_until(self, text, self._unread.encode())
        before, _, self._unread = received.partition(text)
        return before + text

    def type_line(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")


@contextlib.asynccontextmanager
async def run_at_terminal(
    *args: str, **more: str
) -> AsyncIterator[tuple[PseudoTerminal, CommandProcess]]:
    """Run a command at a pseudo-terminal until the block ends."""
    user_fd, process_fd = pty.openpty()
    environ = {"TERM": "xterm", "BROWSER": "true", **more}
    process = CommandProcess(
        *args,
        environ=environ,
        stdin=process_fd,
        stdout=process_fd,
        stderr=process_fd,
        at_terminal=True,
    )
    os.close(process_fd)
    try:
        yield PseudoTerminal(user_fd), process
    finally:
        process.kill()
        os.close(user_fd)


@pytest.mark.long
async def test_a_person_asks_for_changes_leaves_comes_back_and_approves(
    folder: Path, user_repository: Path
):
    args = ("local", str(user_repository), "add subtracts", "--model", write_script(folder, SCRIPT))
    async with run_at_terminal(*args, **build_environ(folder)) as (terminal, process):
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
        "local", str(user_repository), "--model", args[-1], **build_environ(folder)
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
    folder: Path, user_repository: Path
):
    async with run_at_terminal(
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(folder, SLOW_SCRIPT),
        **build_environ(folder),
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
    assert run_plain_git("-C", str(user_repository), "branch", "--list", "osiris/*") == ""


FILES_WITH_HIDDEN_TEXT = {
    "a.py": "# nice \x1b]\nimport os\nos.system('curl')\n# \x07 end\n",
    "b.py": "# \x90\nEVIL = 1 # \u202e\r\n",
}


async def test_the_diff_hides_nothing(run_cli, folder: Path, user_repository: Path):
    script = {
        "runs": [
            build_run(
                *(
                    build_step("write_file", path=p, content=text)
                    for p, text in FILES_WITH_HIDDEN_TEXT.items()
                ),
                build_submit_step("Nice."),
            )
        ]
    }
    code, out, _ = await run_cli(
        "local",
        str(user_repository),
        "x",
        "--model",
        write_script(folder, script),
        "--yes",
        **build_environ(folder),
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
async def test_a_env_file_of_the_repository_is_not_read(folder: Path, user_repository: Path):
    (user_repository / ".env").write_text(
        "OSIRIS_NONSENSE=1\nOSIRIS_MODEL=scripted:/nonexistent\nOSIRIS_DATA_DIR=/nonexistent\n"
    )
    args = ("local", ".", "add subtracts", "--model", write_script(folder, SCRIPT), "--yes")
    result = await asyncio.to_thread(
        functools.partial(run_osiris, *args, cwd=user_repository, **build_environ(folder))
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.long
async def test_the_repositorys_own_label_and_the_persons_own_model_count(
    run_cli, folder: Path, user_repository: Path
):
    (user_repository / ".github").mkdir()
    (user_repository / ".github/osiris.yml").write_text(
        "label: agent\nmodels: {build: 'anthropic:claude-sonnet-5'}\n"
    )
    run_plain_git("-C", str(user_repository), "add", ".github")
    run_plain_git("-C", str(user_repository), *IDENTITY, "commit", "-qm", "Two")
    args = (
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(folder, SCRIPT),
        "--yes",
    )
    code, out, err = await run_cli(*args, **build_environ(folder))
    assert (code, err) == (0, ""), out
    (user_repository / ".github/osiris.yml").write_text("nonsense: 1\n")
    run_plain_git("-C", str(user_repository), *IDENTITY, "commit", "-qam", "Three")
    code, _, err = await run_cli(*args, **build_environ(folder))
    assert (code, "`.github/osiris.yml`: nonsense" in err) == (1, True)


@pytest.mark.long
async def test_a_branch_that_is_in_the_way_loses_no_work(
    run_cli, folder: Path, user_repository: Path
):
    run_plain_git("-C", str(user_repository), "branch", "osiris")
    args = (
        "local",
        str(user_repository),
        "add subtracts",
        "--model",
        write_script(folder, SCRIPT),
        "--yes",
    )
    code, out, _ = await run_cli(*args, **build_environ(folder))
    assert (code, "the branch osiris-1-add-subtracts is in" in out) == (0, True)


@pytest.mark.long
async def test_the_base_is_the_commit_that_was_told_whatever_comes_meanwhile(
    run_cli, folder: Path, user_repository: Path
):
    from osiris.local.repository import LocalRepository
    from osiris.local.work_directories import REQUEST, WorkDirectories

    commit = LocalRepository.open_at(user_repository).commit
    work_directory = WorkDirectories.for_repository(
        folder / "data", user_repository
    ).create_directory()
    (work_directory / REQUEST).write_text(
        json.dumps({"request": "add subtracts", "commit": commit, "branch": "trunk"})
    )
    # as if the command was killed before it created the copy
    run_plain_git("-C", str(user_repository), *IDENTITY, "commit", "-qam", "Meanwhile")
    code, out, err = await run_cli(
        "local",
        str(user_repository),
        "--model",
        write_script(folder, SCRIPT),
        "--yes",
        **build_environ(folder),
    )
    assert (code, err) == (0, ""), out
    assert (
        run_plain_git("-C", str(user_repository), "rev-parse", "osiris/1-add-subtracts~1").strip()
        == commit
    )


@pytest.mark.long
async def test_a_long_request_is_told_whole_and_a_longer_one_refused(
    run_cli, folder: Path, user_repository: Path
):
    script = {"runs": [build_run(*FIX_STEPS, when="THE TAIL")]}
    args = ("--model", write_script(folder, script), "--yes")
    code, out, err = await run_cli(
        "local",
        str(user_repository),
        "x" * 400 + " THE TAIL\nand more",
        *args,
        **build_environ(folder),
    )
    assert (code, err) == (0, ""), out
    code, _, err = await run_cli(
        "local", str(user_repository), "x" * 70_000, *args, **build_environ(folder)
    )
    assert (code, "more than 60000 characters" in err) == (1, True)


@pytest.mark.long
async def test_an_answer_in_the_browser_is_as_good(folder: Path, user_repository: Path):
    import httpx

    args = ("local", str(user_repository), "add subtracts", "--model", write_script(folder, SCRIPT))
    async with run_at_terminal(*args, **build_environ(folder)) as (terminal, process):
        await terminal.wait_for_output("[a]pprove")
        terminal.type_line("o")
        output = await terminal.wait_for_output("/pull/2")
        url = next(word for word in output.split() if word.startswith("http"))
        async with httpx.AsyncClient(follow_redirects=True, trust_env=False) as browser:
            page = await browser.get(url)
            origin = {"Origin": url.partition("/_enter")[0]}
            assert page.status_code == 200
            response = await browser.post(
                f"{page.url}/review", data={"event": "APPROVE", "body": ""}, headers=origin
            )
            assert response.status_code == 200
        await terminal.wait_for_output("git merge osiris/1-add-subtracts")
        assert await asyncio.to_thread(process.wait) == 0


async def test_what_cannot_be_worked_on_is_a_sentence(run_cli, folder: Path, user_repository: Path):
    model = write_script(folder, SCRIPT)
    (folder / "plain").mkdir()
    (folder / "empty").mkdir()
    run_plain_git("init", "-q", str(folder / "empty"))
    run_plain_git("clone", "-q", "--depth=1", f"file://{user_repository}", str(folder / "shallow"))
    for path, sentence in {
        "missing": "is not a folder",
        "plain": "is not in a git repository",
        "empty": "has no commit yet",
        "shallow": "is a shallow clone; `git fetch --unshallow` makes it whole",
    }.items():
        code, _, err = await run_cli(
            "local", str(folder / path), "x", "--model", model, "--yes", **build_environ(folder)
        )
        assert (code, sentence in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("x", "--yes"), "no model is chosen; give --model"),
        (
            ("x", "--yes", "--model", "nobody:x"),
            "there is no model 'nobody:x' here; configured are",
        ),
        (
            ("x", "--yes", "--model", "anthropic:claude-sonnet-5"),
            "the model 'anthropic:claude-sonnet-5' cannot be used here, because ANTHROPIC_API_KEY",
        ),
        (("x", "--model", "scripted:none.yml"), "there is no terminal to ask you on"),
        (("x", "--yes", "--model", "scripted:none.yml"), "the script none.yml cannot be read"),
        (("--yes", "--model", "SCRIPT"), "there is no unfinished work here"),
    ],
)
async def test_what_is_missing_is_a_sentence(
    run_cli, folder: Path, user_repository: Path, args: tuple[str, ...], sentence: str
):
    options = [write_script(folder, SCRIPT) if arg == "SCRIPT" else arg for arg in args]
    code, _, err = await run_cli("local", str(user_repository), *options, **build_environ(folder))
    assert (code, sentence in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.long
async def test_over_a_vendors_wire_with_a_budget_that_is_spent_and_granted_again(
    run_cli, folder: Path, user_repository: Path
):
    async with loopback.serve_vendors(SCRIPT) as vendors:
        environ = {**build_environ(folder), **vendors.build_environ("anthropic")}
        code, _, err = await run_cli(
            "local", str(user_repository), "add subtracts", "--yes", "--budget", "0.01", **environ
        )
        assert (code, err) == (0, "")
        run_plain_git("-C", str(user_repository), "branch", "-D", "osiris/1-add-subtracts")
        args = ("local", str(user_repository), "add subtracts", "--yes")
        code, _, err = await run_cli(*args, **environ, OSIRIS_RUN_USD="0.001")
        assert (code, "the budget of 0.001 US dollars is spent. Nothing is lost." in err) == (
            1,
            True,
        ), err
        code, out, err = await run_cli(
            "local", str(user_repository), "--yes", "--budget", "1", **environ
        )
        assert (code, err) == (0, ""), out
        assert "US dollars." in out
        code, _, err = await run_cli(*args, **{**environ, "ANTHROPIC_API_KEY": "sk-wrong-canary"})
        assert (code, "the model refused the key" in err, "canary" in err) == (1, True, False)

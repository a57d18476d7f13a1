"""What an operator uses: settings, commands, and `serve` when a setting is missing or the disk is
full."""

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from osiris.config.http_server import serve_app
from osiris.config.settings import load_settings
from osiris.core.errors import Refused
from osiris.core.events import IssueRef
from osiris.core.ports.models import Message, ToolCall
from osiris.core.task import State, Task
from osiris.data_folder import lock_folder
from osiris.playground.environment import find_free_port
from osiris.queue import serialization
from osiris.queue.tables import InboxRow, JournalRow, LeaseRow, OutboxRow, RunRow, StepRow, TaskRow
from tests.forkserver import run_osiris


@asynccontextmanager
async def serve_osiris(
    folder: Path, **environ: str
) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """Run `osiris serve` as a process. Yield a client for it and the process id."""
    port = find_free_port()
    env = {
        "PATH": os.environ["PATH"],
        "OSIRIS_DATA_DIR": str(folder / "data"),
        "OSIRIS_PORT": str(port),
        **environ,
    }
    process = await anyio.open_process(
        [sys.executable, "-m", "osiris", "serve"], env=env, cwd=folder, stdout=None
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            with anyio.fail_after(20):
                while not await _is_up(http):
                    await anyio.sleep(0.05)
            yield http, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0
        await process.aclose()


async def _is_up(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/healthz")).is_success
    except httpx.TransportError:
        return False


async def test_serve_without_github_settings_starts_and_says_what_is_missing(folder: Path):
    # an ordinary user's sandbox has no memory limit
    async with serve_osiris(folder, OSIRIS_SANDBOX="weak") as (http, _):
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        missing = {item["what"] for item in ready.json()["missing"]}
        assert missing == {
            "setting GITHUB_APP_ID",
            "setting GITHUB_PRIVATE_KEY or GITHUB_PRIVATE_KEY_FILE",
            "setting GITHUB_WEBHOOK_SECRET",
            "setting OSIRIS_MODEL",
        }
        answer = await http.post("/webhooks/github", content=b"{}")
        assert (answer.status_code, "GITHUB_WEBHOOK_SECRET is not set" in answer.text) == (
            503,
            True,
        )


async def test_a_full_disk_is_503_at_the_door_and_work_goes_on_when_there_is_room(folder: Path):
    import hashlib
    import hmac

    def build_headers(delivery_id: str) -> dict[str, str]:
        digest = hmac.new(b"s3cret", b"{}", hashlib.sha256).hexdigest()
        return {
            "X-Hub-Signature-256": f"sha256={digest}",
            "X-GitHub-Event": "ping",
            "X-GitHub-Delivery": delivery_id,
        }

    async with serve_osiris(folder, GITHUB_WEBHOOK_SECRET="s3cret") as (http, pid):
        assert (
            await http.post("/webhooks/github", content=b"{}", headers=build_headers("1"))
        ).status_code == 202
        _, hard_limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard_limit))
        refused = await http.post("/webhooks/github", content=b"{}", headers=build_headers("2"))
        assert (refused.status_code, "the database did not take it" in refused.text) == (503, True)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard_limit, hard_limit))
        assert (
            await http.post("/webhooks/github", content=b"{}", headers=build_headers("2"))
        ).status_code == 202


def test_the_doctor_names_every_missing_setting_and_what_to_do(folder: Path):
    result = run_osiris("doctor", cwd=folder, OSIRIS_DATA_DIR=str(folder / "data"))
    assert result.returncode == 1
    assert "FAIL setting GITHUB_APP_ID: not set" in result.stdout
    assert "→ set it in the environment or in .env" in result.stdout
    assert "ok   database" in result.stdout
    as_json = run_osiris("doctor", "--json", cwd=folder, OSIRIS_DATA_DIR=str(folder / "data"))
    assert json.loads(as_json.stdout)["healthy"] is False


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"OSIRIS_COLOUR": "red"}, "OSIRIS_COLOUR is not a setting of Osiris; known are: "),
        ({"OSIRIS_PORT": "many"}, "OSIRIS_PORT Input should be a valid integer"),
        (
            {"OSIRIS_MODEL": "gpt"},
            "OSIRIS_MODEL must be VENDOR:MODEL, for example anthropic:claude-sonnet-5",
        ),
        ({"OSIRIS_LOG_FORMAT": "xml"}, "OSIRIS_LOG_FORMAT Input should be 'text' or 'json'"),
        (
            {"GITHUB_APP_ID": "1", "GITHUB_PRIVATE_KEY": "nonsense"},
            "GITHUB_PRIVATE_KEY is not a private RSA key in PEM",
        ),
        (
            {"GITHUB_PRIVATE_KEY_FILE": "/no/such"},
            "GITHUB_PRIVATE_KEY_FILE cannot be read: No such file",
        ),
        ({"DATABASE_URL": "mysql://x/y"}, "Osiris works on PostgreSQL, and on SQLite without it"),
        (
            {"DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/y"},
            "postgresql://u:***@127.0.0.1:1/y cannot be used",
        ),
        ({"REDIS_URL": "http://x"}, "REDIS_URL must be an address like redis://HOST:6379/0"),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL is not a database address"),
    ],
    ids=lambda value: (
        "=".join(*value.items()) if isinstance(value, dict) and len(value) == 1 else ""
    ),
)
def test_a_wrong_setting_stops_the_start_with_its_name_and_reason(
    folder: Path, environ: dict[str, str], sentence: str
):
    result = run_osiris("serve", cwd=folder, **{"OSIRIS_DATA_DIR": str(folder / "data"), **environ})
    assert result.returncode == 1
    assert result.stderr.startswith("osiris: ")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_value_is_never_repeated_it_may_be_a_secret(folder: Path):
    result = run_osiris(
        "serve", cwd=folder, GITHUB_APP_ID="1", GITHUB_PRIVATE_KEY="canary-nonsense"
    )
    assert "canary" not in result.stderr


def test_settings_come_from_a_file_and_the_environment_wins(folder: Path):
    (folder / ".env").write_text('GITHUB_APP_ID=7\nOSIRIS_PORT=9\nGITHUB_PRIVATE_KEY="a\\nb"\n')
    settings = load_settings({"OSIRIS_PORT": "10"}, folder / ".env")
    assert (settings.github_app_id, settings.osiris_port, settings.private_key) == ("7", 10, "a\nb")


def test_wrong_usage_is_2_and_an_expected_failure_is_1_with_one_sentence(folder: Path):
    assert run_osiris("nonsense").returncode == 2
    assert run_osiris("task", "show").returncode == 2
    result = run_osiris("task", "list", cwd=folder, OSIRIS_DATA_DIR=str(folder / "none"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip().splitlines() == [
        f"osiris: there is no database in {folder / 'none'} yet; `osiris serve` makes it"
    ]


def test_a_data_folder_that_cannot_be_used_is_a_sentence(folder: Path):
    (folder / "file").write_text("")
    result = run_osiris("migrate", cwd=folder, OSIRIS_DATA_DIR=str(folder / "file" / "data"))
    assert (result.returncode, "cannot be used: Not a directory" in result.stderr) == (1, True)


def test_a_folder_is_found_from_everywhere_and_an_empty_setting_is_none(folder: Path):
    result = run_osiris(
        "migrate", cwd=folder, OSIRIS_DATA_DIR="data", GITHUB_PRIVATE_KEY_FILE="", OSIRIS_MODEL=""
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert {path.stat().st_mode & 0o777 for path in (folder / "data").glob("osiris.db*")} == {0o600}
    assert load_settings(
        {"OSIRIS_DATA_DIR": "x", "OSIRIS_TOOLCHAINS": "~/a:b"}, folder / ".env"
    ).osiris_data_dir.is_absolute()


@pytest.mark.long
async def test_a_second_worker_in_the_same_folder_and_a_port_in_use_are_refused(folder: Path):
    async with serve_osiris(folder) as (http, _):
        second = run_osiris(
            "serve", cwd=folder, OSIRIS_DATA_DIR=str(folder / "data"), OSIRIS_PORT="0"
        )
        assert (
            second.returncode,
            "another `osiris serve` or `osiris worker` works in" in second.stderr,
        ) == (1, True)
        port = str(http.base_url.port)
        port_in_use = run_osiris(
            "serve", cwd=folder, OSIRIS_DATA_DIR=str(folder / "other"), OSIRIS_PORT=port
        )
        assert (
            port_in_use.returncode,
            f"cannot listen on 127.0.0.1:{port}: " in port_in_use.stderr,
        ) == (
            1,
            True,
        )


def test_a_database_that_is_none_and_an_impossible_number_are_sentences(folder: Path):
    (folder / "osiris.db").write_bytes(b"")
    for arguments in (["list"], ["show", "1"], ["show", "9" * 30], ["show", "a/b#" + "9" * 30]):
        result = run_osiris("task", *arguments, cwd=folder, OSIRIS_DATA_DIR=str(folder))
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert result.stderr.startswith("osiris: ")


def test_migrating_twice_changes_nothing(folder: Path):
    for _ in range(2):
        assert (
            run_osiris("migrate", cwd=folder, OSIRIS_DATA_DIR=str(folder / "data")).returncode == 0
        )
    result = run_osiris("task", "list", cwd=folder, OSIRIS_DATA_DIR=str(folder / "data"))
    assert result.stdout == "no tasks yet: label an issue, or `osiris request`\n"


def test_a_request_waits_for_a_worker_and_a_senseless_one_is_refused(folder: Path):
    data = {"OSIRIS_DATA_DIR": str(folder / "data")}
    result = run_osiris("request", "Do it", "--repo", "acme/shop", cwd=folder, **data)
    assert (result.returncode, result.stdout) == (
        0,
        "noted; it takes effect as soon as `osiris serve` runs with all its settings\n",
    )
    assert (
        "--repo must be owner/name"
        in run_osiris("request", "Do it", "--repo", "shop", cwd=folder, **data).stderr
    )


def test_a_user_who_has_no_name_on_this_machine_can_file_a_request(folder: Path):
    """As in a container that was started with a numeric user."""
    as_nameless = [
        "/usr/bin/unshare",
        "--user",
        "--map-user=64321",
        "--",
        sys.executable,
        "-m",
        "osiris",
    ]
    env = {"PATH": os.environ["PATH"], "OSIRIS_DATA_DIR": str(folder / "data")}
    result = subprocess.run(
        [*as_nameless, "request", "Do it", "--repo", "acme/shop"],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    with Session(create_engine(f"sqlite:///{folder}/data/osiris.db")) as session:
        [row] = session.query(InboxRow)
    assert b'"user-64321"' in row.body


@pytest.mark.parametrize(
    "command", ["demo", "serve", "migrate", "doctor", "request", "task list", "task watch"]
)
def test_every_command_explains_itself(command: str):
    result = run_osiris(*command.split(), "--help")
    assert (result.returncode, "Usage:" in result.stdout) == (0, True)


def test_an_unreadable_key_file_is_refused_in_words(folder: Path):
    settings = load_settings({"GITHUB_PRIVATE_KEY_FILE": str(folder)}, folder / ".env")
    with pytest.raises(Refused, match="cannot be read"):
        _ = settings.private_key


def test_a_worker_that_begins_where_one_is_just_ending_waits_for_its_lock(folder: Path):
    with (folder / "serve.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        threading.Timer(0.3, lock_file.close).start()
        with lock_folder(folder):
            assert lock_file.closed


async def test_a_connection_of_the_last_moment_is_closed_with_the_server():
    """Each round closes the server in another turn of the event loop. A connection that was
    accepted, but not yet registered, used to stay open."""

    async def app(_scope, _receive, _send) -> None: ...

    for turns in range(6):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with serve_app(app, listener, grace=1):
                client = socket.create_connection(listener.getsockname(), timeout=2)
                for _ in range(turns):
                    await asyncio.sleep(0)
            # the kernel resets a connection that was not accepted
            with client, contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(client.recv, 1) == b""


# ── untrusted text at the operator's terminal ─────────────────────────────────────────────────────

HOSTILE_TEXT = (
    "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202eevil\u200b[red]\r\n9  a/b#2  done  \u20289 min"
    " ago\x85 " + "x" * 9_000
)


def write_hostile_rows(database: Path) -> None:
    """Write a task with its history, its steps and its failures, all with hostile text."""
    task = Task(
        issue=IssueRef("acme/shop", 1),
        title=HOSTILE_TEXT,
        body="",
        requester="alice",
        branch="b",
        state=State.FAILED,
        reason=HOSTILE_TEXT,
    )
    call = ToolCall(id="1", name=HOSTILE_TEXT, args={"command": HOSTILE_TEXT})
    messages = [
        Message(role="assistant", text=HOSTILE_TEXT, calls=(call,)),
        Message(role="tool", text=HOSTILE_TEXT, call="1"),
        Message(role="assistant", text="\x85\u2028" + HOSTILE_TEXT),
    ]
    history = [
        ("happened", HOSTILE_TEXT, {"actor": {"login": HOSTILE_TEXT}}),
        ("happened", "Merged", {"by": HOSTILE_TEXT}),
        ("decided", "", {"state": HOSTILE_TEXT, "orders": [HOSTILE_TEXT]}),
        ("done", HOSTILE_TEXT, {"refused": HOSTILE_TEXT}),
        ("done", "Push", {"parked": HOSTILE_TEXT}),
    ]
    order = {"about": "a", "lane": 0, "body": {}, "error": HOSTILE_TEXT}
    rows = [
        TaskRow(
            id=1,
            repo="acme/shop",
            issue=1,
            state="failed",
            data=serialization.dump_task(task),
            created=1,
            updated=1,
            version=1,
        ),
        LeaseRow(number=1, place="p", host=HOSTILE_TEXT, since=1),
        RunRow(name="r", task_id=1, purpose="build", base="b", started=1),
        *(
            StepRow(run="r", seq=n, message=serialization.dump_message(message), at=n)
            for n, message in enumerate(messages)
        ),
        *(
            JournalRow(task_id=1, seq=n, at=n, kind=kind, what=what, detail=detail, hash="h")
            for n, (kind, what, detail) in enumerate(history, 1)
        ),
        InboxRow(
            source="github",
            delivery=HOSTILE_TEXT,
            kind=HOSTILE_TEXT,
            body=b"",
            received=1,
            error=HOSTILE_TEXT,
        ),
        OutboxRow(key=f"refused{HOSTILE_TEXT}", kind=HOSTILE_TEXT, done=2, **order),
        OutboxRow(key="parked", task_id=1, kind=HOSTILE_TEXT, **order),
        OutboxRow(key="waits", task_id=1, kind=HOSTILE_TEXT, not_before=9e9, **order),
        OutboxRow(key="done", task_id=1, kind=HOSTILE_TEXT, not_before=9e9, lease=1, **order),
    ]
    engine = create_engine(f"sqlite:///{database}")
    with Session(engine) as session:
        session.add_all(rows)
        session.commit()
    engine.dispose()


def test_nothing_that_strangers_wrote_is_obeyed_by_a_terminal_or_passes_for_a_row(folder: Path):
    data = {"OSIRIS_DATA_DIR": str(folder / "data")}
    assert run_osiris("migrate", cwd=folder, **data).returncode == 0
    write_hostile_rows(folder / "data/osiris.db")
    for arguments in ("list", "list --failed", "show 1"):
        result = run_osiris("task", *arguments.split(), cwd=folder, **data)
        assert (result.returncode, result.stderr) == (0, "")
        assert "evil[red] 9 a/b#2 done" in result.stdout, "markup, or nothing, was made of it"
        assert [
            c
            for c in result.stdout
            if c != "\n" and (c < " " or "\x7f" <= c < "\xa0" or c in "\u202e\u2028")
        ] == []
        lines = result.stdout.split("\n")
        assert [line for line in lines if line.lstrip().startswith(("9 ", "a/b#2"))] == []
        assert max(map(len, lines)) < 5_000
        as_json = run_osiris("task", *arguments.split(), "--json", cwd=folder, **data)
        assert as_json.returncode == 0
        assert as_json.stdout.isascii()
        json.loads(as_json.stdout)


def test_an_error_is_one_sentence_whatever_was_said(folder: Path):
    result = run_osiris(
        "task",
        "show",
        "1\n\x1b[2J9  a/b#2  done",
        cwd=folder,
        OSIRIS_DATA_DIR=str(folder / "no\x1b]0;x\x07\nne"),
    )
    assert (result.returncode, result.stderr.count("\n"), "\x1b" in result.stderr) == (1, 1, False)

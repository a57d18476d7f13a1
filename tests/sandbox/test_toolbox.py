"""The tools, called as a model calls them."""

import json

import pytest

from osiris.core.errors import RunEnded
from osiris.core.ports.models import Submitted
from osiris.tools.toolbox import SessionTools


@pytest.fixture
def call_tool(session):
    tools = SessionTools(session)

    async def call_by_name(tool: str, **args) -> str:
        return (await tools.call_tool(tool, args)).text

    return call_by_name


async def test_the_specs_are_short(session):
    specs = [
        {"n": spec.name, "d": spec.description, "p": spec.parameters}
        for spec in SessionTools(session).list_tools()
    ]
    assert [spec["n"] for spec in specs] == [
        "read_file",
        "write_file",
        "edit_file",
        "list_dir",
        "search",
        "run_command",
        "read_review",
        "submit",
    ]
    assert len(json.dumps(specs)) < 4000  # about a thousand tokens


async def test_unknown_tools_and_wrong_arguments_are_answers(call_tool):
    assert "no tool named fly; there are: read_file" in await call_tool("fly")
    assert "path: Field required" in await call_tool("read_file", pth="x")
    assert "wrong arguments" in (await call_tool("run_command", command="x", timeout=9999)).lower()


async def test_a_role_without_a_tool_cannot_call_it(session):
    tools = SessionTools(session, ("read_file", "submit"))
    assert [spec.name for spec in tools.list_tools()] == ["read_file", "submit"]
    answer = await tools.call_tool("run_command", {"command": "true"})
    assert answer.text == "no tool named run_command; there are: read_file, submit"


async def test_names_of_arguments_are_answered_in_short(call_tool):
    args = {f"{n}\u200b{'x' * 100_000}": n for n in range(50)}
    answer = await call_tool("list_dir", **args)
    assert answer.startswith("list_dir was not run. Wrong arguments: 0xxxx")
    assert "… [99901 more characters]: Extra inputs are not permitted; 1xxx" in answer
    assert answer.endswith("; and 45 more")
    assert len(answer) < 2000


async def test_reading_numbers_lines_and_says_how_to_go_on(call_tool, run_bash):
    await run_bash(
        "seq 1000 >many; printf 'a\\0b' >binary; touch empty; head -c 9000 /dev/zero | tr '\\0' x"
        " >long"
    )
    text = await call_tool("read_file", path="many", start=5, lines=2)
    assert text == "many: lines 5-6 of 1000 lines; go on with start=7\n     5\t5\n     6\t6"
    assert (
        await call_tool("read_file", path="/workspace/src/app.py")
        == "src/app.py: lines 1-1 of 1 lines\n     1\tprint('one')"
    )
    assert await call_tool("read_file", path="binary") == "binary is a binary file of 3 bytes"
    assert await call_tool("read_file", path="empty") == "empty is empty"
    assert await call_tool("read_file", path="many", start=2000) == "many has only 1000 lines"
    assert "7000 more characters" in await call_tool("read_file", path="long")
    assert len(await call_tool("read_file", path="many", lines=2000)) < 21_000


async def test_reading_what_is_no_file_is_an_answer(call_tool, run_bash):
    await run_bash("mkfifo pipe; ln -s /nowhere dangling; ln -s loop loop; truncate -s 40M huge")
    assert await call_tool("read_file", path="pipe") == "error: pipe is not a regular file"
    assert await call_tool("read_file", path="src") == "error: src is a folder"
    assert (
        await call_tool("read_file", path="nothing") == "error: nothing: no such file or directory"
    )
    assert "no such file" in await call_tool("read_file", path="dangling")
    assert "symbolic links" in await call_tool("read_file", path="loop")
    assert "binary" in await call_tool("read_file", path="huge")
    assert "not a regular file" in await call_tool("read_file", path="/dev/zero")
    assert "error" in await call_tool("read_file", path="x\0y")
    assert "error" in await call_tool("read_file", path="x" * 3000)


async def test_no_path_leads_out_of_the_jail(call_tool, run_bash, folder, monkeypatch, root):
    monkeypatch.setenv("WORKER_SECRET", "canary-52")
    (folder / "canary").write_text("secret")
    await run_bash(
        f"ln -s {folder}/canary out; ln -s /proc/self/environ env; ln -s /etc/shadow shadow"
    )
    for path in (
        "out",
        "env",
        "shadow",
        f"{folder}/canary",
        f"../../../../{folder}/canary",
        "/proc/1/environ",
        "/root",
    ):
        text = await call_tool("read_file", path=path)
        assert "secret" not in text
        assert "canary-52" not in text
    await call_tool("write_file", path="out", content="x")
    assert "read-only" in await call_tool("write_file", path="/etc/passwd", content="x")
    assert (folder / "canary").read_text() == "secret"


async def test_writing_makes_folders_and_says_how_much(call_tool, run_bash):
    assert (
        await call_tool("write_file", path="a/b/c.txt", content="häuser\n")
        == "made a/b/c.txt: 8 bytes"
    )
    assert (
        await call_tool("write_file", path="run.sh", content="#!/bin/sh\nexit 4\n")
        == "wrote run.sh: 17 bytes"
    )
    await run_bash("chmod +x run.sh; ln -s a/b/c.txt link; mkfifo pipe")
    await call_tool("write_file", path="run.sh", content="#!/bin/sh\nexit 5\n")
    assert await run_bash("./run.sh; echo $?") == "5\n"
    await call_tool("write_file", path="link", content="through")
    assert await run_bash("cat a/b/c.txt; readlink link") == "througha/b/c.txt\n"
    assert "folder" in await call_tool("write_file", path="src", content="")
    assert "regular" in await call_tool("write_file", path="pipe", content="")
    assert "error" in await call_tool("write_file", path="", content="")
    big = "line\n" * 500_000
    assert await call_tool("write_file", path="big", content=big) == "made big: 2500000 bytes"


async def test_editing_wants_one_exact_place(call_tool, run_bash):
    await call_tool(
        "write_file", path="f.py", content="def a():\n    return 1\n\ndef b():\n    return 1\n"
    )
    assert "found 2 times in f.py (lines 2, 5)" in await call_tool(
        "edit_file", path="f.py", old="return 1", new="return 2"
    )
    text = await call_tool("edit_file", path="f.py", old="def b():\n  return 1", new="x")
    assert "not in f.py" in text
    assert "nearest line is 4: def b():" in text
    assert (
        await call_tool(
            "edit_file", path="f.py", old="b():\n    return 1", new="b():\n    return 2"
        )
        == "edited f.py at line 4"
    )
    assert (await run_bash("tail -1 f.py")) == "    return 2\n"
    assert "same" in await call_tool("edit_file", path="f.py", old="a", new="a")


async def test_editing_keeps_line_ends_and_odd_bytes(call_tool, run_bash):
    await run_bash("printf 'one\\r\\ntwo\\r\\nth\\xffree\\r\\n' >dos")
    assert "edited" in await call_tool("edit_file", path="dos", old="one\ntwo", new="1\n2")
    assert await run_bash("cat dos") == "1\r\n2\r\nth\udcffree\r\n"


async def test_listing_shows_sizes_folders_and_links(call_tool, run_bash):
    await run_bash("ln -s /etc x; mkfifo p; touch $'new\\nline'")
    assert (await call_tool("list_dir")).splitlines() == [
        ".git/",
        "README.md  6 bytes",
        "new\\nline  0 bytes",
        "p  (not a regular file)",
        "run.sh  10 bytes",
        "src/",
        "x -> /etc",
    ]
    await run_bash("mkdir many; cd many; touch $(seq 700)")
    assert (await call_tool("list_dir", path="many")).endswith("… and 200 more")
    assert "error" in await call_tool("list_dir", path="README.md")


async def test_searching_gives_path_line_and_text(call_tool, run_bash, root):
    await run_bash(
        "mkfifo pipe; printf 'print\\0' >bin; ln -s / root; echo 'x print(' >src/b.py; echo print"
        " >.git/print"
    )
    assert (await call_tool("search", pattern=r"print\(")).splitlines() == [
        "src/app.py:1: print('one')",
        "src/b.py:1: x print(",
    ]
    assert await call_tool("search", pattern="^hel+o$", path="README.md") == "README.md:1: hello"
    assert "no match" in await call_tool("search", pattern="nowhere to be found")
    assert "not a regular expression" in await call_tool("search", pattern="(")
    assert "error" in await call_tool("search", pattern="x", path="nowhere")
    await run_bash("seq 5000 >many")
    assert "more matches" in await call_tool("search", pattern="1", path="many")


async def test_a_search_that_explodes_is_stopped(call_tool, run_bash, monkeypatch):
    monkeypatch.setattr("osiris.tools.sandbox.workspace.file_helper_client.PATIENCE", 0.5)
    await run_bash("printf '%0.sa' $(seq 50) >a; echo b >>a")
    assert "stopped after" in await call_tool("search", pattern="^(a+)+$", path="a")


async def test_a_command_says_how_it_ended(session):
    answer = await SessionTools(session).call_tool(
        "run_command", {"command": "echo out; echo err >&2; exit 3"}
    )
    assert answer.text.splitlines()[0].startswith("exit code 3 in 0.")
    assert answer.text.splitlines()[1:] == ["out", "err"]
    assert (answer.ran.command, answer.ran.exit_code) == ("echo out; echo err >&2; exit 3", 3)
    answer = await SessionTools(session).call_tool(
        "run_command", {"command": "sleep 60", "timeout": 0.2}
    )
    assert answer.text.startswith("stopped after 0.2 s")
    assert answer.ran.exit_code is None


async def test_long_output_is_cut_and_kept(call_tool):
    text = await call_tool("run_command", command="seq 100000")
    assert len(text) < 16_300
    name = text.split("/tmp/outputs/")[1].split("]")[0]
    answer = await call_tool("run_command", command=f"wc -l </tmp/outputs/{name}")
    assert answer.splitlines()[1:] == ["100000"]
    assert "50000" in await call_tool(
        "read_file", path=f"/tmp/outputs/{name}", start=50000, lines=1
    )


async def test_output_is_harmless_text(call_tool):
    text = await call_tool(
        "run_command", command=r"printf '\e[31mred\e[0m \e]0;title\a\u202e\xff\ttab\r\n'"
    )
    assert text.splitlines()[1] == "red ��\ttab".replace("��", "�")


async def test_submitting_ends_the_run(call_tool):
    with pytest.raises(RunEnded) as ended:
        await call_tool("submit", summary=" done ")
    assert ended.value.outcome == Submitted(summary="done")
    assert "was not run" in await call_tool("submit", summary="")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("false 2>&1 | tail -4", "exit code 1 in "),
        ("yes | head -1 >/dev/null", "the reader of a pipe ended before its writer"),
        ("false || true", "`|| true` hides how the rest ended"),
    ],
)
async def test_an_exit_code_is_that_of_the_whole_pipe(call_tool, command: str, told: str):
    assert told in (await call_tool("run_command", command=command)).splitlines()[0]

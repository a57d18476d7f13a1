"""The model's file tools against hostile files: what they answer, and that they read and write
nothing outside of the jail, and wait for nothing. The control is what plain open() does in the
worker, or open() after a check of realpath().
"""

import time
from dataclasses import dataclass, replace

import pytest

from osiris.tools.sandbox.workspace.file_helper_client import PATIENCE
from tests.attacks.attack import complete_script, quote_python
from tests.attacks.conftest import MIB, SMALL_LIMITS

ANSWER_TIMEOUT = 5  # seconds that a call of a tool may take on a busy machine


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A path that leads out of the workspace after `prepare` was run; the control reads it with
    open()."""

    name: str
    path: str
    prepare: str = ""


LEAKS = (
    Leak(name="an absolute path", path="$OWN/private.pem"),
    Leak(name="dots", path="../../../../../../../..$OWN/private.pem"),
    Leak(
        name="dots behind a folder that is there",
        path="src/../../../../../../../../..$OWN/private.pem",
    ),
    Leak(name="a link to a file", path="link", prepare="ln -sfn $OWN/private.pem link"),
    Leak(name="a link to a folder", path="link/private.pem", prepare="ln -sfn $OWN link"),
    Leak(name="a link to the root folder", path="link$OWN/private.pem", prepare="ln -sfn / link"),
    Leak(
        name="a link of many",
        path="l9",
        prepare=(
            "ln -sfn $OWN/private.pem l0; for n in 1 2 3 4 5 6 7 8 9; do ln -sfn l$((n - 1)) l$n;"
            " done"
        ),
    ),
    Leak(
        name="a link with dots",
        path="link",
        prepare="ln -sfn ../../../../../../../..$OWN/private.pem link",
    ),
    Leak(name="an environment", path="/proc/$WORKER/environ"),
    Leak(
        name="a link to an environment", path="link", prepare="ln -sfn /proc/$WORKER/environ link"
    ),
    Leak(
        name="a link to its own environment", path="link", prepare="ln -sfn /proc/self/environ link"
    ),
    Leak(name="a root folder of a process", path="/proc/$WORKER/root$OWN/private.pem"),
    Leak(name="a working folder of a process", path="/proc/$WORKER/cwd/own/private.pem"),
    Leak(
        name="a link to its own root folder",
        path="link$OWN/private.pem",
        prepare="ln -sfn /proc/self/root link",
    ),
    Leak(
        name="a link to its own working folder",
        path="link/../plain/../private.pem",
        prepare="ln -sfn /proc/self/cwd link",
    ),
    Leak(name="a descriptor of a process", path="/proc/self/fd/$FD"),
    Leak(name="a link to descriptors", path="link/$FD", prepare="ln -sfn /dev/fd link"),
    Leak(name="a folder that is a descriptor", path="/proc/self/fd/$PLACE/private.pem"),
)
FIND_DESCRIPTORS = """
import os, sys
at = {os.readlink(f'/proc/self/fd/{n}'): n for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')}
print(at.get(os.environ['OWN'] + '/private.pem', 3), at.get(os.environ['OWN'], 4))
"""
READ_FILE = "import sys; print(open(sys.argv[1], 'rb').read().decode(errors='replace'))"


def fill_variables(worker, text: str) -> str:
    """Return a text with the values of its variables, for paths that no shell expands."""
    file, folder = worker.run_unprotected(
        complete_script(worker, quote_python(FIND_DESCRIPTORS))
    ).split()[:2]
    variables = {
        "$OWN": worker.folder / "own",
        "$WORKER": worker.pid,
        "$FD": file,
        "$PLACE": folder,
    }
    for name, value in variables.items():
        text = text.replace(name, str(value))
    return text


@pytest.mark.parametrize("leak", LEAKS, ids=[leak.name for leak in LEAKS])
def test_reading_outside_by(leak, worker, shared_session, record_verdict):
    path = fill_variables(worker, leak.path)
    prepare = fill_variables(worker, leak.prepare or "true")
    control_output = worker.run_unprotected(
        f"mkdir -p src; {prepare}; {quote_python(READ_FILE, path)}; rm -rf link l? src"
    )
    assert worker.canary in control_output, f"the attack itself is broken: {control_output}"
    worker.run_script(prepare, name=shared_session)
    for tool, args in (
        ("read_file", {"path": path}),
        ("search", {"path": path, "pattern": "canary|OSIRIS"}),
        ("search", {"path": path.rpartition("/")[0] or ".", "pattern": "canary-"}),
        ("list_dir", {"path": path}),
        ("edit_file", {"path": path, "old": "canary", "new": "x"}),
    ):
        assert worker.canary not in worker.call_tool(tool, name=shared_session, **args)
    record_verdict("not there", "plain open() read the canary")


KEY_LEAKS = [leak for leak in LEAKS if "private.pem" in leak.path + leak.prepare]


@pytest.mark.parametrize("leak", KEY_LEAKS, ids=[leak.name for leak in KEY_LEAKS])
def test_writing_outside_by(leak, worker, shared_session, record_verdict):
    path, prepare = (
        fill_variables(worker, text.replace("private.pem", "plain/mark"))
        for text in (leak.path, leak.prepare)
    )
    mark = worker.folder / "own/plain/mark"
    prepare = prepare or "true"
    write = quote_python("import sys; open(sys.argv[1], 'w').write('won')", path)
    control_output = worker.run_unprotected(
        f"mkdir -p src; {prepare}; {write}; cat {mark}; rm -rf link l? src {mark}"
    )
    assert control_output == "won", f"the attack itself is broken: {control_output}"
    worker.run_script(prepare, name=shared_session)
    worker.call_tool("write_file", name=shared_session, path=path, content="one")
    worker.call_tool("edit_file", name=shared_session, path=path, old="one", new="two")
    assert not mark.exists()
    record_verdict("nothing outside was written", "plain open() wrote it")


# ── special files ─────────────────────────────────────────────────────────────────────────────────

CHECK_HANG = "timeout 0.2 cat {0} >/dev/null; [ $? = 124 ] && echo won"
CHECK_ERROR = quote_python(READ_FILE, "{0}") + " 2>/dev/null || echo won"


@dataclass(frozen=True, kw_only=True)
class OddFile:
    """A path where `prepare` creates a file that is not a regular one. The control is a script that
    shows what happens to plain open()."""

    name: str
    path: str
    prepare: str
    control: str = CHECK_ERROR


ODD_FILES = (
    OddFile(name="a FIFO", path="odd", prepare="mkfifo odd", control=CHECK_HANG),
    OddFile(
        name="a FIFO in a folder",
        path="odd/fifo",
        prepare="mkdir odd; mkfifo odd/fifo",
        control=CHECK_HANG,
    ),
    OddFile(
        name="a link to a FIFO",
        path="odd",
        prepare="rm -f fifo; mkfifo fifo; ln -s fifo odd",
        control=CHECK_HANG,
    ),
    OddFile(
        name="a device without an end",
        path="odd",
        prepare="ln -s /dev/zero odd",
        control=CHECK_HANG,
    ),
    OddFile(
        name="a random device", path="odd", prepare="ln -s /dev/urandom odd", control=CHECK_HANG
    ),
    OddFile(
        name="a socket",
        path="odd",
        prepare=quote_python("import socket; socket.socket(socket.AF_UNIX).bind('odd')"),
    ),
    OddFile(name="the terminal", path="odd", prepare="ln -s /dev/tty odd"),
    OddFile(name="a folder", path="odd", prepare="mkdir odd"),
    OddFile(name="a file as a folder", path="odd/more", prepare="echo x >odd"),
    OddFile(name="a ring of links", path="odd", prepare="ln -s odd odd"),
    OddFile(
        name="a link to nothing in a folder of nobody's",
        path="odd",
        prepare="ln -s /proc/nothing odd",
    ),
    OddFile(name="the memory of a process", path="odd", prepare="ln -s /proc/self/mem odd"),
)


@pytest.mark.parametrize("odd", ODD_FILES, ids=[odd.name for odd in ODD_FILES])
def test_odd(odd, worker, shared_session, record_verdict):
    """Every tool answers at once with an error, and does not change the file."""
    control_output = worker.run_unprotected(
        f"rm -rf odd; {odd.prepare}; {odd.control.format(odd.path)}; rm -rf odd fifo"
    )
    assert "won" in control_output, f"the attack itself is broken: {control_output}"
    worker.run_script(f"rm -rf odd; {odd.prepare}", name=shared_session)
    before = worker.run_script("stat -c '%F %i' odd", name=shared_session).output
    tools = {"read_file": {}, "write_file": {"content": "x"}, "edit_file": {"old": "x", "new": "y"}}
    for tool, args in {**tools, "search": {"pattern": "x"}}.items():
        began = time.monotonic()
        answer = worker.call_tool(tool, name=shared_session, path=odd.path, **args)
        assert answer.startswith(("error: ", "no match"))
        assert time.monotonic() - began < ANSWER_TIMEOUT
    assert "odd" in worker.call_tool("list_dir", name=shared_session)
    assert "no match" in worker.call_tool("search", name=shared_session, pattern="nothing like it")
    assert worker.run_script("stat -c '%F %i' odd", name=shared_session).output == before
    record_verdict("said to be none", "plain open() waits or raises")


ODD_NAMES = {
    "a command": "$(echo won)",
    "another command": "x`echo won`",
    "two commands": "x; echo won",
    "an option": "-rf",
    "a home": "~",
    "all": "*",
    "a line end": "x\ny",
    "no UTF-8": "caf\udce9",
    "all controls": "".join(map(chr, range(1, 32))),
    "an end that is hidden": "x\u202etxt.exe",
    "quotes": "x'\"y",
    "dots": "...",
    "a percent sign": "%2e%2e%2fx%00",
    "a backslash": "..\\..\\x",
    "the temporary name of a tool": ".osiris-0123456789abcdef",
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_is(name, worker, shared_session, record_verdict):
    """The tools use a name as it is: they read at it what they wrote at it."""
    path = ODD_NAMES[name]
    assert worker.run_unprotected("set -- '$(echo won)'; eval echo $1") == "won\n"
    assert "error" not in worker.call_tool(
        "write_file", name=shared_session, path=f"names/{path}", content="its content"
    )
    assert worker.run_script("ls -A names | wc -l; cat names/*", name=shared_session).output
    assert "its content" in worker.call_tool("read_file", name=shared_session, path=f"names/{path}")
    listing = worker.run_script("ls -A names -1 --zero; rm -rf names", name=shared_session).output
    assert listing == path.encode("utf-8", "surrogateescape") + b"\0"
    record_verdict("a name and nothing more", "a shell obeys it")


@pytest.mark.parametrize(
    "path",
    ["", "x\0y", "x" * 300, "x/" * 1500, "x" * 5000],
    ids=["none", "NUL", "long", "deep", "longer"],
)
def test_an_impossible_path(path, worker, shared_session, record_verdict):
    assert "won" in worker.run_unprotected(
        quote_python("try: open('x\\0y')\nexcept ValueError: print('won')")
    )
    for tool, args in (
        ("read_file", {}),
        ("write_file", {"content": "x"}),
        ("list_dir", {}),
        ("search", {"pattern": "x"}),
    ):
        assert worker.call_tool(tool, name=shared_session, path=path, **args)
    record_verdict("an answer", "open() raises")


HALF_LETTERS = {
    "a path": ("read_file", {"path": "x\ud800"}),
    "a path to write": ("write_file", {"path": "x\ud800", "content": "x"}),
    "a content": ("write_file", {"path": "x", "content": "x\ud800"}),
    "what is to be found": ("edit_file", {"path": "README.md", "old": "x\ud800", "new": "y"}),
    "what takes its place": ("edit_file", {"path": "README.md", "old": "hello", "new": "y\ud800"}),
    "a pattern": ("search", {"pattern": "x\ud800"}),
    "a command": ("run_command", {"command": "echo x\ud800"}),
}


@pytest.mark.parametrize("name", HALF_LETTERS)
def test_half_a_letter_in(name, worker, shared_session, record_verdict):
    """JSON can hold one half of a surrogate pair, which no encoding can represent."""
    assert "won" in worker.run_unprotected(
        quote_python("try: open('x\\ud800')\nexcept UnicodeEncodeError: print('won')")
    )
    tool, args = HALF_LETTERS[name]
    assert worker.call_tool(tool, name=shared_session, **args)
    record_verdict("an answer", "open() raises")


# ── files and patterns that take long ─────────────────────────────────────────────────────────────

LARGE_LIMITS = replace(SMALL_LIMITS, disk=300 * MIB, file_size=200 * MIB)
HUGE_FILES = {
    "one line": "head -c 50000000 /dev/zero | tr '\\0' A >huge; echo >>huge; echo last >>huge",
    "short lines": "yes | head -c 10000000 >huge",
    "a hole": "truncate -s 150M huge",
    "no line end": "head -c 50000000 /dev/zero | tr '\\0' '\\r' >huge",
    "broken text": "head -c 20000000 /dev/zero | tr '\\0' '\\377' >huge",
    "thousands of files": "mkdir many; cd many; touch $(seq 4000)",
}


@pytest.mark.parametrize("name", HUGE_FILES)
def test_much_of(name, worker, record_verdict):
    worker.create_session("huge", limits=LARGE_LIMITS)
    assert (
        worker.run_unprotected(
            quote_python(READ_FILE, "/dev/stdin") + " < <(head -c 5000000 /dev/zero) | wc -c"
        ).strip()
        == "5000001"
    )
    worker.run_script(HUGE_FILES[name], name="huge", timeout=30)
    calls = [
        ("read_file", {"path": "huge"}),
        ("read_file", {"path": "huge", "start": 90_000_000, "lines": 2000}),
    ]
    calls += [
        ("edit_file", {"path": "huge", "old": "last", "new": "x"}),
        ("list_dir", {"path": "many"}),
    ]
    for tool, args in [
        *calls,
        ("search", {"pattern": "A|y|last"}),
        ("search", {"pattern": "x", "path": "huge"}),
    ]:
        began = time.monotonic()
        assert len(worker.call_tool(tool, name="huge", **args)) < 25_000
        assert time.monotonic() - began < 2 * ANSWER_TIMEOUT
    worker.destroy_session("huge")
    record_verdict("a page of it, or a sentence", "plain read() takes all")


PATTERNS = {
    "that doubles its work": "(a+)+$",
    "that trebles it": "(a|a|aa)+$",
    "of many repeats": "((a{1,30}){1,30}){1,30}b",
    "that looks back": r"(a*)*\1b",
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern(name, worker, shared_session, record_verdict):
    """The search is stopped at the timeout of the tool, which is short here."""
    code = f"import re; re.search({PATTERNS[name]!r}, 'a' * 40 + '!')"
    assert worker.run_unprotected(f"timeout 0.2 {quote_python(code)}; echo $?") == "124\n"
    worker.run_script(f"echo '{'a' * 40}!' >pattern", name=shared_session)
    worker.call("set_file_tool_timeout", 0.3)
    try:
        answer = worker.call_tool(
            "search", name=shared_session, path="pattern", pattern=PATTERNS[name]
        )
    finally:
        worker.call("set_file_tool_timeout", PATIENCE)
    assert answer.startswith("error: stopped")
    assert "README.md" in worker.call_tool("list_dir", name=shared_session)
    record_verdict("stopped, and said so", "it would run for hours")


# ── races ─────────────────────────────────────────────────────────────────────────────────────────

SWAP_LINKS = """
import ctypes, os, sys, time
own, libc, end = sys.argv[1], ctypes.CDLL(None), time.monotonic() + float(sys.argv[2])
os.makedirs("race/real", exist_ok=True)
for name in ("race/file", "race/real/mark"): open(name, "w").write("harmless")
os.symlink(own + "/private.pem", "race/other"); os.symlink(own + "/plain", "race/folder")
while time.monotonic() < end:
    for one, other in ((b"race/file", b"race/other"), (b"race/real", b"race/folder")):
        libc.renameat2(-100, one, -100, other, 2)
"""
CHECK_THEN_OPEN = """
import os, time
end, here = time.monotonic() + 30, os.path.realpath("race")
def allowed(path): return os.path.realpath(path).startswith(here + "/")
text, won = "", False
while ("harmless" in text or not text or not won) and time.monotonic() < end:
    try:
        if "harmless" in text or not text:
            if allowed("race/file"): text = open("race/file").read()
        if allowed("race/real/mark"): open("race/real/mark", "r+").write("won")
        won = open("mark").read().startswith("won")
    except OSError: pass
print(text)
"""


RACING_CALLS = {
    "read_file": {"path": "race/file"},
    "search": {"path": "race/file", "pattern": "harm|canary"},
    "list_dir": {"path": "race/real"},
    "write_file": {"path": "race/real/mark", "content": "harmless"},
    "edit_file": {"path": "race/real/mark", "old": "harm", "new": "charm"},
}


def test_a_race_with_all_tools(worker, fresh_session, record_verdict):
    """While the tools run, a process swaps a file with a link, and a folder with a link."""
    own = str(worker.folder / "own")
    swap = quote_python(SWAP_LINKS, own, "30")
    check = quote_python(CHECK_THEN_OPEN)
    script = (
        f"mkdir race; echo clean >mark; {swap} & swap=$!; {check}; kill $swap; wait; cat mark;"
        " rm -rf race mark"
    )
    leaked, _, written = worker.run_unprotected(script).strip().rpartition("\n")
    assert worker.canary in leaked, "the attack itself is broken"
    assert written.startswith("won"), "the attack itself is broken"
    tool_calls = [("call_tool", ("s", tool, args), {}) for tool, args in RACING_CALLS.items()]
    answers = []
    for seconds in ("1.5", "6", "24"):  # a busy machine needs longer
        swap_call = ("run_command", ("s", ["/usr/bin/python3", "-c", SWAP_LINKS, own, seconds]), {})
        swap_result, more_answers = worker.call("run_beside", swap_call, *tool_calls)
        assert swap_result.exit_code == 0
        answers += more_answers
        if len(answers) > 10:
            break
    assert len(answers) > 10
    assert not any(worker.canary in answer for answer in answers)
    assert not (worker.folder / "own/plain/mark").exists()
    record_verdict(f"not once in {len(answers)}", "code that checks realpath() leaks and writes")

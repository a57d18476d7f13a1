"""The model's file tools against hostile files: what they answer, and that nothing outside of the
jail is read, written or waited for. The control is what plain open() or a check of realpath() would
have done in the worker.
"""

import time
from dataclasses import dataclass, replace

import pytest

from osiris.tools.sandbox.workspace.file_helper_client import PATIENCE
from tests.attacks.attack import known, python
from tests.attacks.conftest import MIB, SMALL

PATIENT = 5  # seconds that a tool may take at most, on a busy machine


@dataclass(frozen=True, kw_only=True)
class Leak:
    """`path` leads out when `prepare` was done; the control reads it plainly."""

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
FIND = """
import os, sys
at = {os.readlink(f'/proc/self/fd/{n}'): n for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')}
print(at.get(os.environ['OWN'] + '/private.pem', 3), at.get(os.environ['OWN'], 4))
"""
PLAIN = "import sys; print(open(sys.argv[1], 'rb').read().decode(errors='replace'))"


def filled(attacked, text: str) -> str:
    """The text with the facts in it, for a path that no shell looks at."""
    file, folder = attacked.unprotected(known(attacked, python(FIND))).split()[:2]
    facts = {"$OWN": attacked.place / "own", "$WORKER": attacked.pid, "$FD": file, "$PLACE": folder}
    for name, value in facts.items():
        text = text.replace(name, str(value))
    return text


@pytest.mark.parametrize("leak", LEAKS, ids=[leak.name for leak in LEAKS])
def test_reading_outside_by(leak, lasting, verdict):
    path = filled(lasting, leak.path)
    prepare = filled(lasting, leak.prepare or "true")
    plain = lasting.unprotected(
        f"mkdir -p src; {prepare}; {python(PLAIN, path)}; rm -rf link l? src"
    )
    assert lasting.canary in plain, f"the attack itself is broken: {plain}"
    lasting.bash(prepare, name="lasting")
    for tool, args in (
        ("read_file", {"path": path}),
        ("search", {"path": path, "pattern": "canary|OSIRIS"}),
        ("search", {"path": path.rpartition("/")[0] or ".", "pattern": "canary-"}),
        ("list_dir", {"path": path}),
        ("edit_file", {"path": path, "old": "canary", "new": "x"}),
    ):
        assert lasting.canary not in lasting.tool(tool, name="lasting", **args)
    verdict("not there", "plain open() read the canary")


WAYS = [leak for leak in LEAKS if "private.pem" in leak.path + leak.prepare]


@pytest.mark.parametrize("leak", WAYS, ids=[leak.name for leak in WAYS])
def test_writing_outside_by(leak, lasting, verdict):
    path, prepare = (
        filled(lasting, text.replace("private.pem", "plain/mark"))
        for text in (leak.path, leak.prepare)
    )
    mark = lasting.place / "own/plain/mark"
    prepare = prepare or "true"
    plain = python("import sys; open(sys.argv[1], 'w').write('won')", path)
    control = lasting.unprotected(
        f"mkdir -p src; {prepare}; {plain}; cat {mark}; rm -rf link l? src {mark}"
    )
    assert control == "won", f"the attack itself is broken: {control}"
    lasting.bash(prepare, name="lasting")
    lasting.tool("write_file", name="lasting", path=path, content="one")
    lasting.tool("edit_file", name="lasting", path=path, old="one", new="two")
    assert not mark.exists()
    verdict("nothing outside was written", "plain open() wrote it")


# ── files that are none ───────────────────────────────────────────────────────────────────────────

HANG = "timeout 0.2 cat {0} >/dev/null; [ $? = 124 ] && echo won"
RAISE = python(PLAIN, "{0}") + " 2>/dev/null || echo won"


@dataclass(frozen=True, kw_only=True)
class Odd:
    """`plain` is what becomes of plain open()."""

    name: str
    path: str
    prepare: str
    plain: str = RAISE


ODD = (
    Odd(name="a FIFO", path="odd", prepare="mkfifo odd", plain=HANG),
    Odd(
        name="a FIFO in a folder", path="odd/fifo", prepare="mkdir odd; mkfifo odd/fifo", plain=HANG
    ),
    Odd(
        name="a link to a FIFO",
        path="odd",
        prepare="rm -f fifo; mkfifo fifo; ln -s fifo odd",
        plain=HANG,
    ),
    Odd(name="a device without an end", path="odd", prepare="ln -s /dev/zero odd", plain=HANG),
    Odd(name="a random device", path="odd", prepare="ln -s /dev/urandom odd", plain=HANG),
    Odd(
        name="a socket",
        path="odd",
        prepare=python("import socket; socket.socket(socket.AF_UNIX).bind('odd')"),
    ),
    Odd(name="the terminal", path="odd", prepare="ln -s /dev/tty odd"),
    Odd(name="a folder", path="odd", prepare="mkdir odd"),
    Odd(name="a file as a folder", path="odd/more", prepare="echo x >odd"),
    Odd(name="a ring of links", path="odd", prepare="ln -s odd odd"),
    Odd(
        name="a link to nothing in a folder of nobody's",
        path="odd",
        prepare="ln -s /proc/nothing odd",
    ),
    Odd(name="the memory of a process", path="odd", prepare="ln -s /proc/self/mem odd"),
)


@pytest.mark.parametrize("odd", ODD, ids=[odd.name for odd in ODD])
def test_odd(odd, lasting, verdict):
    """Every tool answers at once that it cannot be done, and leaves it as it is."""
    control = lasting.unprotected(
        f"rm -rf odd; {odd.prepare}; {odd.plain.format(odd.path)}; rm -rf odd fifo"
    )
    assert "won" in control, f"the attack itself is broken: {control}"
    lasting.bash(f"rm -rf odd; {odd.prepare}", name="lasting")
    before = lasting.bash("stat -c '%F %i' odd", name="lasting").output
    tools = {"read_file": {}, "write_file": {"content": "x"}, "edit_file": {"old": "x", "new": "y"}}
    for tool, args in {**tools, "search": {"pattern": "x"}}.items():
        began = time.monotonic()
        answer = lasting.tool(tool, name="lasting", path=odd.path, **args)
        assert answer.startswith(("error: ", "no match"))
        assert time.monotonic() - began < PATIENT
    assert "odd" in lasting.tool("list_dir", name="lasting")
    assert "no match" in lasting.tool("search", name="lasting", pattern="nothing like it")
    assert lasting.bash("stat -c '%F %i' odd", name="lasting").output == before
    verdict("said to be none", "plain open() waits or raises")


NAMES = {
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


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is(name, lasting, verdict):
    """It is a name and nothing more: what was written there is read there."""
    path = NAMES[name]
    assert lasting.unprotected("set -- '$(echo won)'; eval echo $1") == "won\n"
    assert "error" not in lasting.tool(
        "write_file", name="lasting", path=f"names/{path}", content="its content"
    )
    assert lasting.bash("ls -A names | wc -l; cat names/*", name="lasting").output
    assert "its content" in lasting.tool("read_file", name="lasting", path=f"names/{path}")
    found = lasting.bash("ls -A names -1 --zero; rm -rf names", name="lasting").output
    assert found == path.encode("utf-8", "surrogateescape") + b"\0"
    verdict("a name and nothing more", "a shell obeys it")


@pytest.mark.parametrize(
    "path",
    ["", "x\0y", "x" * 300, "x/" * 1500, "x" * 5000],
    ids=["none", "NUL", "long", "deep", "longer"],
)
def test_an_impossible_path(path, lasting, verdict):
    assert "won" in lasting.unprotected(
        python("try: open('x\\0y')\nexcept ValueError: print('won')")
    )
    for tool, args in (
        ("read_file", {}),
        ("write_file", {"content": "x"}),
        ("list_dir", {}),
        ("search", {"pattern": "x"}),
    ):
        assert lasting.tool(tool, name="lasting", path=path, **args)
    verdict("an answer", "open() raises")


NO_TEXT = {
    "a path": ("read_file", {"path": "x\ud800"}),
    "a path to write": ("write_file", {"path": "x\ud800", "content": "x"}),
    "a content": ("write_file", {"path": "x", "content": "x\ud800"}),
    "what is to be found": ("edit_file", {"path": "README.md", "old": "x\ud800", "new": "y"}),
    "what takes its place": ("edit_file", {"path": "README.md", "old": "hello", "new": "y\ud800"}),
    "a pattern": ("search", {"pattern": "x\ud800"}),
    "a command": ("run_command", {"command": "echo x\ud800"}),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_half_a_letter_in(name, lasting, verdict):
    """JSON can hold one half of a pair of surrogates, which no encoding has a place for."""
    assert "won" in lasting.unprotected(
        python("try: open('x\\ud800')\nexcept UnicodeEncodeError: print('won')")
    )
    tool, args = NO_TEXT[name]
    assert lasting.tool(tool, name="lasting", **args)
    verdict("an answer", "open() raises")


# ── files and patterns that take long ─────────────────────────────────────────────────────────────

LARGE = replace(SMALL, disk=300 * MIB, file_size=200 * MIB)
HUGE = {
    "one line": "head -c 50000000 /dev/zero | tr '\\0' A >huge; echo >>huge; echo last >>huge",
    "short lines": "yes | head -c 10000000 >huge",
    "a hole": "truncate -s 150M huge",
    "no line end": "head -c 50000000 /dev/zero | tr '\\0' '\\r' >huge",
    "broken text": "head -c 20000000 /dev/zero | tr '\\0' '\\377' >huge",
    "thousands of files": "mkdir many; cd many; touch $(seq 4000)",
}


@pytest.mark.parametrize("name", HUGE)
def test_much_of(name, worker, verdict):
    worker.create("huge", limits=LARGE)
    assert (
        worker.unprotected(
            python(PLAIN, "/dev/stdin") + " < <(head -c 5000000 /dev/zero) | wc -c"
        ).strip()
        == "5000001"
    )
    worker.bash(HUGE[name], name="huge", timeout=30)
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
        assert len(worker.tool(tool, name="huge", **args)) < 25_000
        assert time.monotonic() - began < 2 * PATIENT
    worker.ask("destroy", "huge")
    verdict("a page of it, or a sentence", "plain read() takes all")


PATTERNS = {
    "that doubles its work": "(a+)+$",
    "that trebles it": "(a|a|aa)+$",
    "of many repeats": "((a{1,30}){1,30}){1,30}b",
    "that looks back": r"(a*)*\1b",
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern(name, lasting, verdict):
    """It is stopped when the tool's time is over; that is a moment here."""
    code = f"import re; re.search({PATTERNS[name]!r}, 'a' * 40 + '!')"
    assert lasting.unprotected(f"timeout 0.2 {python(code)}; echo $?") == "124\n"
    lasting.bash(f"echo '{'a' * 40}!' >pattern", name="lasting")
    lasting.ask("hurry", 0.3)
    try:
        answer = lasting.tool("search", name="lasting", path="pattern", pattern=PATTERNS[name])
    finally:
        lasting.ask("hurry", PATIENCE)
    assert answer.startswith("error: stopped")
    assert "README.md" in lasting.tool("list_dir", name="lasting")
    verdict("stopped, and said so", "it would run for hours")


# ── races ─────────────────────────────────────────────────────────────────────────────────────────

SWAP = """
import ctypes, os, sys, time
own, libc, end = sys.argv[1], ctypes.CDLL(None), time.monotonic() + float(sys.argv[2])
os.makedirs("race/real", exist_ok=True)
for name in ("race/file", "race/real/mark"): open(name, "w").write("harmless")
os.symlink(own + "/private.pem", "race/other"); os.symlink(own + "/plain", "race/folder")
while time.monotonic() < end:
    for one, other in ((b"race/file", b"race/other"), (b"race/real", b"race/folder")):
        libc.renameat2(-100, one, -100, other, 2)
"""
CHECKED = """
import os, time
end, here = time.monotonic() + 0.7, os.path.realpath("race")
def allowed(path): return os.path.realpath(path).startswith(here + "/")
while time.monotonic() < end:
    try:
        if allowed("race/file"): print(open("race/file").read())
        if allowed("race/real/mark"): open("race/real/mark", "r+").write("won")
    except OSError: pass
"""


RACING = {
    "read_file": {"path": "race/file"},
    "search": {"path": "race/file", "pattern": "harm|canary"},
    "list_dir": {"path": "race/real"},
    "write_file": {"path": "race/real/mark", "content": "harmless"},
    "edit_file": {"path": "race/real/mark", "old": "harm", "new": "charm"},
}


def test_a_race_with_all_tools(attacked, verdict):
    """A file and a link, and a folder and a link, are swapped all the time while they are at
    work."""
    own = str(attacked.place / "own")
    swap = python(SWAP, own, "0.7")
    check = python(CHECKED)
    script = (
        f"mkdir race; echo clean >mark; {swap} & {check} | sort -u; wait; cat mark; rm -rf race"
        " mark"
    )
    leaked, _, written = attacked.unprotected(script).strip().rpartition("\n")
    assert attacked.canary in leaked, "the attack itself is broken"
    assert written.startswith("won"), "the attack itself is broken"
    using = [("tool", ("s", tool, args), {}) for tool, args in RACING.items()]
    answers = []
    for seconds in ("1.5", "6", "24"):  # a busy machine needs longer for so many
        swapping = ("run", ("s", ["/usr/bin/python3", "-c", SWAP, own, seconds]), {})
        swapped, more = attacked.ask("beside", swapping, *using)
        assert swapped.exit_code == 0
        answers += more
        if len(answers) > 10:
            break
    assert len(answers) > 10
    assert not any(attacked.canary in answer for answer in answers)
    assert not (attacked.place / "own/plain/mark").exists()
    verdict(f"not once in {len(answers)}", "code that checks realpath() leaks and writes")

"""Real work must succeed in the sandbox that stops the attacks: common development tools, on
projects without dependencies."""

import shlex
from dataclasses import dataclass, field, replace

import pytest

from osiris.core.ports.sandbox import GIB
from tests.attacks.attack import quote_python
from tests.attacks.conftest import MIB, SMALL_LIMITS

WORK_LIMITS = replace(
    SMALL_LIMITS, memory=2 * GIB, disk=1 * GIB, inodes=100_000, processes=256, file_size=512 * MIB
)


@dataclass(frozen=True, kw_only=True)
class WorkCase:
    """A piece of work: the test writes `files`, then `script` must succeed and print
    `expected_output`."""

    name: str
    script: str
    expected_output: str
    files: dict[str, str] = field(default_factory=dict)


SERVER_TEST = """
import http.server, threading, unittest, urllib.request

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words): pass

class Serving(unittest.TestCase):
    def test_a_page(self):
        with http.server.ThreadingHTTPServer(("localhost", 0), Quiet) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with urllib.request.urlopen(f"http://localhost:{server.server_port}/", timeout=5) as page:
                self.assertEqual(page.status, 200)
            server.shutdown()
"""
TWO_LOCALHOSTS = """
import socket
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.socket(family); server.bind((host, 0)); server.listen()
    client = socket.create_connection(server.getsockname()[:2], 5)
    server.accept()[0].sendall(b"heard"); print(client.recv(9))
datagrams = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
datagrams[0].bind(("127.0.0.1", 0)); datagrams[1].sendto(b"x", datagrams[0].getsockname()); datagrams[0].recv(9)
names = [name for _, name in socket.if_nameindex()]
print("lo is up", "lo" in names)
"""
POOL = """
import multiprocessing
from multiprocessing import shared_memory
def double(n): return 2 * n
if __name__ == "__main__":
    for way in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(way).Pool(3) as pool: print(sum(pool.map(double, range(100))))
    shared = shared_memory.SharedMemory(create=True, size=4096)
    shared.close(); shared.unlink()
    print("pools work")
"""
WATCH = """
import ctypes, os
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(0)
libc.inotify_add_watch(watch, b".", 0x100)
open("new-file", "w").close()
print(os.read(watch, 4096)[16:].rstrip(b"\\0"))
"""
TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0: os.execvp("bash", ["bash", "-c", "tty -s && stty size && read line && echo heard $line"])
os.write(terminal, b"hello\\n")
text = b""
try:
    while part := os.read(terminal, 999): text += part
except OSError: pass
print(text.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
THREADS = """
import threading, time, queue, signal, tempfile, mmap, fcntl, locale, sqlite3, ssl, ctypes
jobs, done = queue.Queue(), []
crew = [threading.Thread(target=lambda: done.append(jobs.get())) for _ in range(50)]
for one in crew: one.start()
for n in range(50): jobs.put(n)
for one in crew: one.join(5)
signal.signal(signal.SIGALRM, lambda *_: done.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
with tempfile.NamedTemporaryFile() as file:
    fcntl.flock(file, fcntl.LOCK_EX); file.write(bytes(4096)); file.flush(); mmap.mmap(file.fileno(), 4096)[0] = 1
base = sqlite3.connect("base.db"); base.execute("PRAGMA journal_mode=WAL"); base.execute("CREATE TABLE t (n)")
base.execute("INSERT INTO t VALUES (1)"); base.commit()
ssl.create_default_context()
print(sorted(done[:-1]) == list(range(50)), done[-1], base.execute("SELECT n FROM t").fetchone())
"""
NODE_FETCH = """
const {test} = require("node:test"); const assert = require("node:assert"); const http = require("node:http");
test("fetch from localhost", async () => {
  const server = http.createServer((_, answer) => answer.end("heard")).listen(0, "localhost");
  await new Promise(ready => server.on("listening", ready));
  assert.equal(await (await fetch(`http://localhost:${server.address().port}/`)).text(), "heard");
  server.close(); server.closeAllConnections?.();
});
test("child, worker, WebAssembly", async () => {
  assert.equal(require("node:child_process").execFileSync("node", ["-p", "6 * 7"]).toString(), "42\\n");
  const {Worker} = require("node:worker_threads");
  const code = "require('worker_threads').parentPort.postMessage(1)";
  const said = await new Promise(heard => new Worker(code, {eval: true}).on("message", heard));
  assert.equal(said, 1);
  assert.ok(new WebAssembly.Memory({initial: 1, maximum: 65536}));
  require("node:os").networkInterfaces();
});
"""
MAKEFILE = "test: sum\n\t./sum 40 2 | grep -x 42\nsum: sum.c\n\tgcc -O1 -pthread -Wall -o $@ $<\n"
SUM_C = """#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static void *add(void *of) { long *n = of; n[2] = n[0] + n[1]; return 0; }
int main(int many, char **words) {
    long n[3] = {atol(words[1]), atol(words[2])}; pthread_t thread;
    pthread_create(&thread, 0, add, n); pthread_join(thread, 0); printf("%ld\\n", n[2]); return 0;
}
"""
GO_TEST = """package sum
import ("net"; "os/exec"; "testing")
func TestServer(t *testing.T) {
    server, err := net.Listen("tcp", "localhost:0")
    if err != nil { t.Fatal(err) }
    go func() { server.Accept() }()
    if _, err := net.Dial("tcp", server.Addr().String()); err != nil { t.Fatal(err) }
    if err := exec.Command("true").Run(); err != nil { t.Fatal(err) }
}
"""
RUST = """
pub fn sum(a: i32, b: i32) -> i32 { a + b }
#[cfg(test)] mod tests {
    #[test] fn adds() { assert_eq!(super::sum(40, 2), 42); }
    #[test] fn listens() { std::net::TcpListener::bind("127.0.0.1:0").unwrap(); }
}
"""
GIT = (
    "git init -q . && git add -A && git commit -qm one && echo more >>README && git diff --stat &&"
    " git stash -q && git stash pop -q && git commit -qam two && git switch -qc other && git rebase"
    " -q main && git log --oneline && git worktree add -q ../tree-$$ && git gc -q && git fsck &&"
    " echo git works"
)
STREAMS = (
    "echo one | cat /dev/stdin && echo two >/dev/stdout && echo three >/dev/stderr && cat <(echo"
    " four) && cat <<<five && echo six | tee /dev/fd/1 >/dev/null && [ -t 0 ] || head -c 4"
    " /dev/urandom | wc -c && mkfifo pipe && (echo seven >pipe &) && cat pipe && [ -r"
    " /proc/self/status ] && nproc && free -m >/dev/null && date +%Z && whoami && hostname &&"
    " getent hosts localhost && echo streams work"
)
LETTERS = (
    'locale charmap; [ "$(printf "ä€𝄞" | wc -m)" = 3 ] && mkdir "ä€𝄞" && touch "ä€𝄞/ß" && ls ä* &&'
    " echo letters work"
)
WORK_CASES = (
    WorkCase(
        name="pytest",
        script="python3 -m pytest -q",
        expected_output="2 passed",
        files={
            "test_sum.py": (
                "def test_sum(tmp_path):\n    assert 40 + 2 == 42\ndef test_two(capfd): pass\n"
            )
        },
    ),
    WorkCase(
        name="a server and its client",
        script="python3 -m unittest",
        expected_output="OK",
        files={"test_it.py": SERVER_TEST},
    ),
    WorkCase(
        name="both localhosts",
        script="python3 two.py",
        expected_output="lo is up True",
        files={"two.py": TWO_LOCALHOSTS},
    ),
    WorkCase(
        name="pools of processes",
        script="python3 pool.py",
        expected_output="pools work",
        files={"pool.py": POOL},
    ),
    WorkCase(
        name="watching files",
        script="python3 watch.py",
        expected_output="new-file",
        files={"watch.py": WATCH},
    ),
    WorkCase(
        name="a terminal of python's",
        script="python3 terminal.py",
        expected_output="heard hello",
        files={"terminal.py": TERMINAL},
    ),
    WorkCase(
        name="a terminal of script's",
        script="script -qec 'tty -s && echo typed' log",
        expected_output="typed",
    ),
    WorkCase(
        name="threads, locks, a database",
        script="python3 all.py",
        expected_output="True alarm (1,)",
        files={"all.py": THREADS},
    ),
    WorkCase(
        name="a virtual environment",
        script="python3 -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix)'",
        expected_output="/v",
    ),
    WorkCase(
        name="npm test",
        script="npm test --silent",
        expected_output="pass 2",
        files={
            "package.json": '{"name": "x", "scripts": {"test": "node --test"}}',
            "it.test.js": NODE_FETCH,
        },
    ),
    WorkCase(
        name="make and gcc",
        script="make -s test",
        expected_output="42",
        files={"Makefile": MAKEFILE, "sum.c": SUM_C},
    ),
    WorkCase(
        name="go test",
        script="go test -count=1 -vet=off ./...",
        expected_output="ok",
        files={"go.mod": "module sum\n\ngo 1.19\n", "sum_test.go": GO_TEST},
    ),
    WorkCase(
        name="cargo test",
        script="cargo test -q --offline",
        expected_output="2 passed",
        files={
            "Cargo.toml": '[package]\nname = "sum"\nversion = "0.1.0"\nedition = "2021"\n',
            "src/lib.rs": RUST,
        },
    ),
    WorkCase(name="git", script=GIT, expected_output="git works", files={"README": "hello\n"}),
    WorkCase(
        name="git in the clone of the mirror",
        script=(
            "cd /workspace && git log --oneline && echo more >>README.md && git diff --stat && git"
            " commit -qam two && git switch -qc topic && git rev-list --count topic && git blame"
            " README.md"
        ),
        expected_output="more",
    ),
    WorkCase(name="streams and shells", script=STREAMS, expected_output="streams work"),
    WorkCase(name="letters", script=LETTERS, expected_output="letters work"),
)
SLOW_BUILDS = {"npm test", "go test", "cargo test"}
"""Left to `make test-long`: each compiles for seconds."""


@pytest.fixture(scope="session")
def work_session(worker):
    """Provide a session "work" with higher limits. It keeps the caches of the tools between the
    tests."""
    worker.create_session("work", limits=WORK_LIMITS)
    yield "work"
    worker.destroy_session("work")


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(work, id=work.name, marks=pytest.mark.long if work.name in SLOW_BUILDS else ())
        for work in WORK_CASES
    ],
)
def test_it_works(work, worker, work_session, record_verdict):
    lines = [f"cd $(mktemp -d -p . {shlex.quote(work.name.split()[0])}.XXXX)"]
    for name, text in work.files.items():
        lines += [f"mkdir -p $(dirname {name})", f"printf %s {shlex.quote(text)} >{name}"]
    lines += ["git init -q . 2>/dev/null", f"( {work.script} )"]
    result = worker.run_script("\n".join(lines), name=work_session, timeout=120)
    output = result.output.decode(errors="replace")
    assert result.exit_code == 0, output[-3000:]
    assert work.expected_output in output
    record_verdict(f"it works, in {result.seconds:.1f} s", "the other suites")


def test_a_server_on_localhost_would_hang_without_its_interface(
    worker, work_session, record_verdict
):
    """In a new network namespace the interface `lo` is down; bubblewrap brings it up."""
    show_state = quote_python(
        "import fcntl, socket, struct\n"
        "flags = fcntl.ioctl(socket.socket(), 0x8913, struct.pack('256s', b'lo'))[16]\n"
        "print('up' if flags & 1 else 'down')"
    )
    assert worker.run_unprotected(f"unshare --user --map-root-user --net {show_state}") == "down\n"
    assert worker.run_script(show_state, name=work_session).output == b"up\n"
    connect = quote_python(
        "import socket\none = socket.create_server(('127.0.0.1', 0))\ntry:"
        " socket.create_connection(one.getsockname(), 2); print('connected')\nexcept OSError as e:"
        " print(e)"
    )
    assert "unreachable" in worker.run_unprotected(
        f"unshare --user --map-root-user --net {connect}"
    )
    assert worker.run_script(connect, name=work_session).output == b"connected\n"
    record_verdict("lo is up", "unshare alone leaves it down")

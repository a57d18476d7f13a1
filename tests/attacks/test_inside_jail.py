"""Hostile commands that want the secrets of their worker, or somebody to talk to: files, processes,
sockets, others."""

import pytest

from tests.attacks.attack import Attack, each, judge, python

WALK = """
import os, socket, stat
for folder, folders, names in os.walk(os.environ.get("FROM", "/")):
    if folder == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys", "usr")]
    for name in names:
        path = os.path.join(folder, name)
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(2)
                try: one.connect(path); print(path, one.recv(99))
                except OSError as error: print(path, error)
"""


def asks(family: str, address: str, kind: str = "SOCK_STREAM") -> str:
    """Connect there and show the answer."""
    say = "one.send(b'please');" if kind == "SOCK_DGRAM" else ""
    return python(
        "import os, socket\n"
        f"one = socket.socket(socket.{family}, socket.{kind})\n"
        "one.settimeout(2)\n"
        "own, port = os.environ['OWN'], int(os.environ['PORT'])\n"
        f"try: one.connect({address}); {say} print(one.recv(99))\n"
        "except OSError as error: print(error)"
    )


def tcp(host: str) -> Attack:
    return Attack(
        name=f"a TCP port of the host by {host}",
        script=asks("AF_INET6" if ":" in host else "AF_INET", f"({host!r}, port)"),
        held="another localhost answers nothing",
        shows="the port gave the canary",
    )


SECRETS = (
    Attack(
        name="the environments of all processes",
        script="cat /proc/*/environ | tr '\\0' '\\n'",
        held="own environment only",
        shows="the worker's was read",
    ),
    Attack(
        name="the environment of process 1",
        script="tr '\\0' '\\n' </proc/1/environ | grep -q . && echo won",
        held="it is empty",
        shows="a naive jail's process 1 has it",
        control="naive",
    ),
    Attack(
        name="the environment of the worker by its number",
        script="tr '\\0' '\\n' <\"/proc/$WORKER/environ\"",
        held="no such process",
        shows="it was read",
    ),
    Attack(
        name="the command lines of all processes",
        script=(
            "cat /proc/*/cmdline | tr '\\0' '\\n' | grep -qE 'attacks[.]worker|own[/]sandboxes' &&"
            " echo won"
        ),
        held="no command line of the host, no path of it",
        shows="the worker's was read",
    ),
    Attack(
        name="the files of the worker by their paths",
        script='cat "$OWN/private.pem" "$OWN/readable" "$OWN"/../own/readable',
        held="not there",
        shows="they were read",
    ),
    Attack(
        name="the files of the worker through its root folder",
        script='cat /proc/[0-9]*/root"$OWN"/private.pem',
        held="no process shows the host's files",
        shows="they were read",
    ),
    Attack(
        name="the files of the worker through its working folder",
        script='cat /proc/"$WORKER"/cwd/own/private.pem /proc/[0-9]*/cwd/../private.pem',
        held="no such process",
        shows="they were read",
    ),
    Attack(
        name="an open file that the worker leaks",
        script="for fd in /proc/self/fd/* /proc/1/fd/*; do [ -f $fd ] && head -c 99 $fd; done",
        held="only standard streams come along",
        shows="it was inherited",
    ),
    Attack(
        name="an open folder that the worker leaks",
        script="for fd in /proc/self/fd/*; do cat $fd/private.pem $fd/../../etc/shadow; done",
        held="only standard streams come along",
        shows="openat went through it",
    ),
    Attack(
        name="the memory map of the worker",
        script='grep -q python "/proc/$WORKER/maps" && echo won',
        held="no such process",
        shows="it was read",
    ),
    Attack(
        name="folders of the host where secrets are",
        script=(
            "for at in /root /var/lib /var/run /run /srv /mnt /media /boot /opt /sys /.fly"
            ' /home/[!a]*; do [ -n "$(ls -A $at)" ] && echo "won $at"; done; head -c 1 /etc/shadow'
            " | grep -q . && echo won"
        ),
        held="none of them is there",
        shows="they were listed",
    ),
    Attack(
        name="an agent's keys, tokens and sockets in the home folder",
        script=(
            "find / \\( -path /proc -o -path /usr -o -path /etc/ssl \\) -prune -o -type f -regex"
            " '.*\\(pem\\|key\\|netrc\\|\\.env\\|id_[a-z0-9]+\\)' -print -quit | grep -q . &&"
            " echo won"
        ),
        held="no such file in the jail",
        shows="the worker's key was found",
        easier="find \"$OWN\" -name '*.pem' | grep -q . && echo won",
    ),
    tcp("127.0.0.1"),
    tcp("0.0.0.0"),
    tcp("localhost"),
    tcp("2130706433"),
    tcp("::ffff:127.0.0.1"),
    Attack(
        name="a UDP port of the host",
        script=asks("AF_INET", "('127.0.0.1', port)", "SOCK_DGRAM"),
        held="another localhost answers nothing",
        shows="a datagram came back",
    ),
    Attack(
        name="a UNIX socket of the host by its path",
        script=asks("AF_UNIX", "f'{own}/control.sock'"),
        held="not there",
        shows="it gave the canary",
    ),
    Attack(
        name="an abstract UNIX socket of the host",
        script=asks("AF_UNIX", "f'\\0{own}/control'"),
        held="another name space of the network",
        shows="it gave the canary",
    ),
    Attack(
        name="any UNIX socket that can be found",
        script=python(WALK),
        held="there is none",
        shows="the worker's was found",
        easier=f'FROM="$OWN" {python(WALK)}',
    ),
    Attack(
        name="a DNS question to a far server",
        script="echo x >/dev/udp/192.0.2.1/53 && echo won",
        held="network is unreachable",
        shows="it was sent",
    ),
    Attack(
        name="a network interface",
        script=python(
            "import os, socket\ntunnels = ('lo', 'tunl', 'sit', 'ip6tnl', 'gre', 'erspan',"
            " 'ip_vti', 'ip6_vti', 'ip6gre', 'teql')\nif any(not name.startswith(tunnels) for _,"
            " name in socket.if_nameindex()): print('won')"
        ),
        held="lo alone",
        shows="others were found",
    ),
    Attack(
        name="a route to somewhere",
        script="tail -n +2 /proc/net/route | grep -q . && echo won",
        held="no route",
        shows="there is one",
    ),
    Attack(
        name="the names of hosts",
        script="grep -q nameserver /etc/resolv.conf && echo won",
        held="no name server is told",
        shows="there is one",
        easier="echo nameserver >resolv; grep -q nameserver resolv && echo won",
    ),
)


@each(*SECRETS)
def test_secret(attack, lasting, verdict):
    judge(attack, lasting, verdict, name="lasting")


# ── the neighbours ────────────────────────────────────────────────────────────────────────────────

TRACES = (
    "a TCP port",
    "an abstract socket",
    "a socket in /tmp",
    "shared memory",
    "a file in /dev/shm",
    "a process",
)
LEAVE = """
import ctypes, os, socket, sys, time
held = [socket.socket() for _ in range(1)] + [socket.socket(socket.AF_UNIX) for _ in range(2)]
for one, at in zip(held, (("127.0.0.1", 18999), "\\0neighbour", "/tmp/neighbour.sock")):
    one.bind(at); one.listen()
ctypes.CDLL(None).shmget(0x5ec2e7, 4096, 0o1666)
open("/dev/shm/neighbour", "w").close()
print("left", flush=True)
time.sleep(float(sys.argv[1]))
os.unlink("/tmp/neighbour.sock"); os.unlink("/dev/shm/neighbour")
"""
FIND = """
import ctypes, glob, os, socket, time
def connects(family, at):
    with socket.socket(family) as one: one.connect(at)
def shares():
    if ctypes.CDLL(None).shmget(0x5ec2e7, 4096, 0) < 0: raise OSError("none")
def sees():
    lines = [open(path, "rb").read() for path in glob.glob("/proc/[0-9]*/cmdline")]
    if not any(b"is-" b"here" in line for line in lines): raise OSError("none")
ways = {"a TCP port": lambda: connects(socket.AF_INET, ("127.0.0.1", 18999)),
        "an abstract socket": lambda: connects(socket.AF_UNIX, "\\0neighbour"),
        "a socket in /tmp": lambda: connects(socket.AF_UNIX, "/tmp/neighbour.sock"),
        "shared memory": shares, "a file in /dev/shm": lambda: os.stat("/dev/shm/neighbour"), "a process": sees}
until = time.monotonic() + 0.6
while ways and time.monotonic() < until:
    for name, way in list(ways.items()):
        try: way(); print("found", name); del ways[name]
        except OSError: pass
print("over")
"""


@pytest.fixture(scope="session")
def traces(worker):
    """What a command finds of one that runs beside it: (in another session, in the same jail)."""
    for name in ("left", "finding"):
        worker.create(name)
    leave, find = (["/usr/bin/python3", "-c", code] for code in (LEAVE, FIND))
    left, found = worker.ask(
        "together",
        [("run", ("left", [*leave, "0.8", "is-here"]), {}), ("run", ("finding", find), {})],
    )
    both = f"{python(LEAVE, '0.8', 'is-here')} & {python(FIND)}; wait"
    control = worker.bash(both, name="finding").output.decode()
    for name in ("left", "finding"):
        worker.ask("destroy", name)
    assert b"left" in left.output
    return found.output.decode(), control


@pytest.mark.parametrize("trace", TRACES)
def test_neighbour(trace, traces, verdict):
    """Another session's command runs at the same time."""
    beside, within = traces
    assert f"found {trace}\n" in within
    assert "over" in beside
    assert f"found {trace}\n" not in beside
    verdict("sessions see nothing of each other", "found within one jail")


def test_another_sessions_files(attacked, verdict):
    attacked.create("other")
    for at in ("/workspace", "/tmp", "/home/agent"):
        attacked.bash(f"echo {attacked.canary} >{at}/mine", name="other")
    find = f"grep -rls {attacked.canary} /workspace /tmp /home /dev/shm"
    assert len(attacked.bash(find, name="other").output.split()) == 3
    assert attacked.bash(find).output == b""
    attacked.ask("destroy", "other")
    attacked.create("other")
    assert attacked.bash(find, name="other").output == b""
    attacked.ask("destroy", "other")
    verdict(
        "nothing of another session, or of an earlier one of the same name",
        "found in its own session",
    )


def test_a_listener_inside_is_not_reached_from_outside(attacked, verdict):
    listen = (
        "import socket\n"
        "one = socket.create_server(('127.0.0.1', 18998)); one.settimeout(0.5)\n"
        "try: one.accept(); print('won')\n"
        "except OSError: print('over')"
    )
    knock = (
        "for n in $(seq 15); do (exec 3<>/dev/tcp/127.0.0.1/18998) 2>/dev/null && echo won; sleep"
        " 0.02; done"
    )
    attempts = [("plain", (["/bin/bash", "-c", knock],), {})]
    within = [("run", ("s", ["/usr/bin/python3", "-c", listen]), {})]
    without = f"{python(listen)} & {knock}; wait"
    assert "won" in attacked.unprotected(without)
    heard, reached = attacked.ask("together", [*within, *attempts])
    assert (heard.output, reached) == (b"over\n", b"")
    verdict("its port is in another network", "an unprotected one was reached")


# ── signals ───────────────────────────────────────────────────────────────────────────────────────


@each(
    Attack(
        name="to the worker by its number",
        script='kill -0 "$WORKER" && echo won',
        held="no such process",
        shows="it could be sent",
    ),
    Attack(
        name="to the worker as the owner of a descriptor",
        script=python(
            "import fcntl, os\n"
            "ours, _ = os.pipe()\n"
            "try: fcntl.fcntl(ours, fcntl.F_SETOWN, int(os.environ['WORKER'])); print('won')\n"
            "except OSError as error: print(error)"
        ),
        held="no such process",
        shows="it was accepted",
    ),
    Attack(
        name="to the worker by a descriptor of it",
        script=python(
            "import os, signal\ntry:"
            " signal.pidfd_send_signal(os.pidfd_open(int(os.environ['WORKER'])), 0);"
            " print('won')\nexcept OSError as error: print(error)"
        ),
        held="no such process",
        shows="it could be sent",
    ),
)
def test_signal(attack, lasting, verdict):
    judge(attack, lasting, verdict, name="lasting")


def test_a_signal_to_everybody_ends_the_command_alone(attacked, verdict):
    attacked.create("other")
    killing = (
        "run",
        ("s", ["/bin/bash", "-c", "sleep 20 & kill -9 -1; kill -9 0; kill -9 1; kill -9 2"]),
        {},
    )
    assert attacked.unprotected("sleep 20 & kill -9 $!; wait $!; echo $?").split()[-1] == "137"
    killed, others = attacked.ask("beside", killing, ("run", ("other", ["/bin/echo", "alive"]), {}))
    assert killed.seconds < 5
    assert {other.output for other in others} == {b"alive\n"}
    assert attacked.bash("echo alive").output == b"alive\n"
    attacked.ask("destroy", "other")
    verdict("the next command runs, and so do the neighbours", "kill -9 kills")


def test_a_lower_priority_for_all_processes_of_the_user(attacked, verdict):
    lower = (
        "import os\n{loop}os.setpriority({which}, {who},"
        " 5)\nprint(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    one = lower.format(loop="", which="os.PRIO_PROCESS", who=0)
    everybody = lower.format(loop="", which="os.PRIO_USER", who="os.getuid()")
    assert attacked.unprotected(python(one)) == "5\n"
    assert attacked.bash(f"{python(everybody)}; nice").output == b"5\n5\n"
    assert attacked.bash("nice").output == b"0\n"
    assert (
        attacked.unprotected("ps -o ni= -p $WORKER".replace("$WORKER", str(attacked.pid))).strip()
        == "0"
    )
    verdict("only its own processes", "a process lowered itself")

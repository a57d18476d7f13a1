"""Hostile commands that look for the secrets of their worker, or for something to communicate with:
files, processes, sockets, other sessions."""

import pytest

from tests.attacks.attack import Attack, judge_attack, parametrize_attacks, quote_python

CONNECT_TO_SOCKETS = """
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


def connect_socket(family: str, address: str, kind: str = "SOCK_STREAM") -> str:
    """Return a shell command that connects to an address, and prints the answer."""
    send = "one.send(b'please');" if kind == "SOCK_DGRAM" else ""
    return quote_python(
        "import os, socket\n"
        f"one = socket.socket(socket.{family}, socket.{kind})\n"
        "one.settimeout(2)\n"
        "own, port = os.environ['OWN'], int(os.environ['PORT'])\n"
        f"try: one.connect({address}); {send} print(one.recv(99))\n"
        "except OSError as error: print(error)"
    )


def build_tcp_attack(host: str) -> Attack:
    return Attack(
        name=f"a TCP port of the host by {host}",
        script=connect_socket("AF_INET6" if ":" in host else "AF_INET", f"({host!r}, port)"),
        outcome="another localhost answers nothing",
        control_outcome="the port gave the canary",
    )


SECRETS = (
    Attack(
        name="the environments of all processes",
        script="cat /proc/*/environ | tr '\\0' '\\n'",
        outcome="own environment only",
        control_outcome="the worker's was read",
    ),
    Attack(
        name="the environment of process 1",
        script="tr '\\0' '\\n' </proc/1/environ | grep -q . && echo won",
        outcome="it is empty",
        control_outcome="a naive jail's process 1 has it",
        control="run_in_naive_jail",
    ),
    Attack(
        name="the environment of the worker by its number",
        script="tr '\\0' '\\n' <\"/proc/$WORKER/environ\"",
        outcome="no such process",
        control_outcome="it was read",
    ),
    Attack(
        name="the command lines of all processes",
        script=(
            "cat /proc/*/cmdline | tr '\\0' '\\n' | grep -qE 'attacks[.]worker|own[/]sandboxes' &&"
            " echo won"
        ),
        outcome="no command line of the host, no path of it",
        control_outcome="the worker's was read",
    ),
    Attack(
        name="the files of the worker by their paths",
        script='cat "$OWN/private.pem" "$OWN/readable" "$OWN"/../own/readable',
        outcome="not there",
        control_outcome="they were read",
    ),
    Attack(
        name="the files of the worker through its root folder",
        script='cat /proc/[0-9]*/root"$OWN"/private.pem',
        outcome="no process shows the host's files",
        control_outcome="they were read",
    ),
    Attack(
        name="the files of the worker through its working folder",
        script='cat /proc/"$WORKER"/cwd/own/private.pem /proc/[0-9]*/cwd/../private.pem',
        outcome="no such process",
        control_outcome="they were read",
    ),
    Attack(
        name="an open file that the worker leaks",
        script="for fd in /proc/self/fd/* /proc/1/fd/*; do [ -f $fd ] && head -c 99 $fd; done",
        outcome="only standard streams come along",
        control_outcome="it was inherited",
    ),
    Attack(
        name="an open folder that the worker leaks",
        script="for fd in /proc/self/fd/*; do cat $fd/private.pem $fd/../../etc/shadow; done",
        outcome="only standard streams come along",
        control_outcome="openat went through it",
    ),
    Attack(
        name="the memory map of the worker",
        script='grep -q python "/proc/$WORKER/maps" && echo won',
        outcome="no such process",
        control_outcome="it was read",
    ),
    Attack(
        name="folders of the host where secrets are",
        script=(
            "for at in /root /var/lib /var/run /run /srv /mnt /media /boot /opt /sys /.fly"
            ' /home/[!a]*; do [ -n "$(ls -A $at)" ] && echo "won $at"; done; head -c 1 /etc/shadow'
            " | grep -q . && echo won"
        ),
        outcome="none of them is there",
        control_outcome="they were listed",
    ),
    Attack(
        name="an agent's keys, tokens and sockets in the home folder",
        script=(
            "find / \\( -path /proc -o -path /usr -o -path /etc/ssl \\) -prune -o -type f -regex"
            " '.*\\(pem\\|key\\|netrc\\|\\.env\\|id_[a-z0-9]+\\)' -print -quit | grep -q . &&"
            " echo won"
        ),
        outcome="no such file in the jail",
        control_outcome="the worker's key was found",
        control_script="find \"$OWN\" -name '*.pem' | grep -q . && echo won",
    ),
    build_tcp_attack("127.0.0.1"),
    build_tcp_attack("0.0.0.0"),
    build_tcp_attack("localhost"),
    build_tcp_attack("2130706433"),
    build_tcp_attack("::ffff:127.0.0.1"),
    Attack(
        name="a UDP port of the host",
        script=connect_socket("AF_INET", "('127.0.0.1', port)", "SOCK_DGRAM"),
        outcome="another localhost answers nothing",
        control_outcome="a datagram came back",
    ),
    Attack(
        name="a UNIX socket of the host by its path",
        script=connect_socket("AF_UNIX", "f'{own}/control.sock'"),
        outcome="not there",
        control_outcome="it gave the canary",
    ),
    Attack(
        name="an abstract UNIX socket of the host",
        script=connect_socket("AF_UNIX", "f'\\0{own}/control'"),
        outcome="another name space of the network",
        control_outcome="it gave the canary",
    ),
    Attack(
        name="any UNIX socket that can be found",
        script=quote_python(CONNECT_TO_SOCKETS),
        outcome="there is none",
        control_outcome="the worker's was found",
        control_script=f'FROM="$OWN" {quote_python(CONNECT_TO_SOCKETS)}',
    ),
    Attack(
        name="a DNS question to a far server",
        script="echo x >/dev/udp/192.0.2.1/53 && echo won",
        outcome="network is unreachable",
        control_outcome="it was sent",
    ),
    Attack(
        name="a network interface",
        script=quote_python(
            "import os, socket\ntunnels = ('lo', 'tunl', 'sit', 'ip6tnl', 'gre', 'erspan',"
            " 'ip_vti', 'ip6_vti', 'ip6gre', 'teql')\nif any(not name.startswith(tunnels) for _,"
            " name in socket.if_nameindex()): print('won')"
        ),
        outcome="lo alone",
        control_outcome="others were found",
    ),
    Attack(
        name="a route to somewhere",
        script="tail -n +2 /proc/net/route | grep -q . && echo won",
        outcome="no route",
        control_outcome="there is one",
    ),
    Attack(
        name="the names of hosts",
        script="grep -q nameserver /etc/resolv.conf && echo won",
        outcome="no name server is told",
        control_outcome="there is one",
        control_script="echo nameserver >resolv; grep -q nameserver resolv && echo won",
    ),
)


@parametrize_attacks(*SECRETS)
def test_secret(attack, worker, shared_session, record_verdict):
    judge_attack(attack, worker, record_verdict, name=shared_session)


# ── the neighbours ────────────────────────────────────────────────────────────────────────────────

TRACES = (
    "a TCP port",
    "an abstract socket",
    "a socket in /tmp",
    "shared memory",
    "a file in /dev/shm",
    "a process",
)
LEAVE_TRACES = """
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
FIND_TRACES = """
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
    """Provide what a command finds of one that runs beside it: (in another session, in the same
    jail)."""
    for name in ("leaving", "finding"):
        worker.create_session(name)
    leave, find = (["/usr/bin/python3", "-c", code] for code in (LEAVE_TRACES, FIND_TRACES))
    leave_result, find_result = worker.call(
        "run_together",
        [
            ("run_command", ("leaving", [*leave, "0.8", "is-here"]), {}),
            ("run_command", ("finding", find), {}),
        ],
    )
    both = f"{quote_python(LEAVE_TRACES, '0.8', 'is-here')} & {quote_python(FIND_TRACES)}; wait"
    control_output = worker.run_script(both, name="finding").output.decode()
    for name in ("leaving", "finding"):
        worker.destroy_session(name)
    assert b"left" in leave_result.output
    return find_result.output.decode(), control_output


@pytest.mark.parametrize("trace", TRACES)
def test_neighbour(trace, traces, record_verdict):
    """A command of another session runs at the same time."""
    output, control_output = traces
    assert f"found {trace}\n" in control_output
    assert "over" in output
    assert f"found {trace}\n" not in output
    record_verdict("sessions see nothing of each other", "found within one jail")


def test_another_sessions_files(worker, fresh_session, record_verdict):
    worker.create_session("other")
    for at in ("/workspace", "/tmp", "/home/agent"):
        worker.run_script(f"echo {worker.canary} >{at}/mine", name="other")
    find = f"grep -rls {worker.canary} /workspace /tmp /home /dev/shm"
    assert len(worker.run_script(find, name="other").output.split()) == 3
    assert worker.run_script(find).output == b""
    worker.destroy_session("other")
    worker.create_session("other")
    assert worker.run_script(find, name="other").output == b""
    worker.destroy_session("other")
    record_verdict(
        "nothing of another session, or of an earlier one of the same name",
        "found in its own session",
    )


def test_a_listener_inside_is_not_reached_from_outside(worker, fresh_session, record_verdict):
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
    listen_call = ("run_command", ("s", ["/usr/bin/python3", "-c", listen]), {})
    knock_call = ("run_unprotected", (["/bin/bash", "-c", knock],), {})
    assert "won" in worker.run_unprotected(f"{quote_python(listen)} & {knock}; wait")
    listen_result, knock_output = worker.call("run_together", [listen_call, knock_call])
    assert (listen_result.output, knock_output) == (b"over\n", b"")
    record_verdict("its port is in another network", "an unprotected one was reached")


# ── signals ───────────────────────────────────────────────────────────────────────────────────────


@parametrize_attacks(
    Attack(
        name="to the worker by its number",
        script='kill -0 "$WORKER" && echo won',
        outcome="no such process",
        control_outcome="it could be sent",
    ),
    Attack(
        name="to the worker as the owner of a descriptor",
        script=quote_python(
            "import fcntl, os\n"
            "ours, _ = os.pipe()\n"
            "try: fcntl.fcntl(ours, fcntl.F_SETOWN, int(os.environ['WORKER'])); print('won')\n"
            "except OSError as error: print(error)"
        ),
        outcome="no such process",
        control_outcome="it was accepted",
    ),
    Attack(
        name="to the worker by a descriptor of it",
        script=quote_python(
            "import os, signal\ntry:"
            " signal.pidfd_send_signal(os.pidfd_open(int(os.environ['WORKER'])), 0);"
            " print('won')\nexcept OSError as error: print(error)"
        ),
        outcome="no such process",
        control_outcome="it could be sent",
    ),
)
def test_signal(attack, worker, shared_session, record_verdict):
    judge_attack(attack, worker, record_verdict, name=shared_session)


def test_a_signal_to_everybody_ends_the_command_alone(worker, fresh_session, record_verdict):
    worker.create_session("other")
    kill_call = (
        "run_command",
        ("s", ["/bin/bash", "-c", "sleep 20 & kill -9 -1; kill -9 0; kill -9 1; kill -9 2"]),
        {},
    )
    assert worker.run_unprotected("sleep 20 & kill -9 $!; wait $!; echo $?").split()[-1] == "137"
    echo_call = ("run_command", ("other", ["/bin/echo", "alive"]), {})
    kill_result, echo_results = worker.call("run_beside", kill_call, echo_call)
    assert kill_result.seconds < 5
    assert {result.output for result in echo_results} == {b"alive\n"}
    assert worker.run_script("echo alive").output == b"alive\n"
    worker.destroy_session("other")
    record_verdict("the next command runs, and so do the neighbours", "kill -9 kills")


def test_a_lower_priority_for_all_processes_of_the_user(worker, fresh_session, record_verdict):
    lower_priority = (
        "import os\n{loop}os.setpriority({which}, {who},"
        " 5)\nprint(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    lower_one = lower_priority.format(loop="", which="os.PRIO_PROCESS", who=0)
    lower_all = lower_priority.format(loop="", which="os.PRIO_USER", who="os.getuid()")
    assert worker.run_unprotected(quote_python(lower_one)) == "5\n"
    assert worker.run_script(f"{quote_python(lower_all)}; nice").output == b"5\n5\n"
    assert worker.run_script("nice").output == b"0\n"
    assert worker.run_unprotected(f"ps -o ni= -p {worker.pid}").strip() == "0"
    record_verdict("only its own processes", "a process lowered itself")

"""Hostile commands that write where they must not (the system, the mirror, the host), or that
damage their own session."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attacks.attack import Attack, judge_attack, quote_python
from tests.attacks.conftest import SMALL_LIMITS

FOLDERS = (
    *(
        "/",
        "/usr",
        "/usr/bin",
        "/usr/local/lib",
        "/etc",
        "/etc/osiris",
        "/dev",
        "/dev/pts",
        "/proc",
        "/proc/self",
        "/sys",
    ),
    *(
        "/home",
        "/root",
        "/run",
        "/run/egress",
        "/var",
        "/opt",
        "/.cargo",
        "/base.git",
        "/base.git/hooks",
        "/newroot",
    ),
)
FILES = (
    *(
        "/usr/bin/python3",
        "/usr/bin/git",
        "/etc/passwd",
        "/etc/gitconfig",
        "/etc/ld.so.cache",
        "/etc/osiris/file_helper",
    ),
    *(
        "/etc/osiris/proxy_bridge",
        "/base.git/config",
        "/base.git/HEAD",
        "/base.git/packed-refs",
        "/proc/1/exe",
        "/bin/sh",
    ),
)
CREATE_MARKER = "(mkdir -p {0} && echo x >{0}/osiris-marker) && echo won; rm -f {0}/osiris-marker"
CHANGE_FILE = "; ".join(
    f"({way}) && echo won" for way in (": >>{0}", "chmod u+w {0}", "ln -f {0} hard", "mv {0} {0}-2")
)
CHANGE_FILE += "; rm -f hard some-2"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_in(folder, worker, shared_session, record_verdict):
    attack = Attack(
        name=folder,
        script=CREATE_MARKER.format(folder),
        outcome="",
        control_outcome="",
        control_script=CREATE_MARKER.format("made"),
    )
    judge_attack(attack, worker, record_verdict, name=shared_session)
    assert not os.path.exists(f"{folder}/osiris-marker")  # False where we have no access
    record_verdict("read-only, or not there", "the same in an own folder works")


@pytest.mark.parametrize("file", FILES)
def test_another_content_of(file, worker, shared_session, record_verdict):
    """The attack also tries another mode, another name, and a hard link to the file."""
    attack = Attack(
        name=file,
        script=CHANGE_FILE.format(file),
        outcome="",
        control_outcome="",
        control_script=f"echo x >some; {CHANGE_FILE.format('some')}",
    )
    judge_attack(attack, worker, record_verdict, name=shared_session)
    record_verdict("read-only", "the same with an own file works")


# ── the mirror ────────────────────────────────────────────────────────────────────────────────────

GIT = "GIT_CONFIG_GLOBAL=/dev/null git -c safe.directory='*' -c user.name=a -c user.email=a@x"
MIRROR_CHANGES = {
    "a new branch": f"{GIT} -C $B update-ref refs/heads/evil HEAD && echo won",
    "a branch that points elsewhere": f"{GIT} -C $B symbolic-ref HEAD refs/heads/evil && echo won",
    "a push": (
        f"{GIT} clone -q $B clone && {GIT} -C clone push -q $B HEAD:refs/heads/evil && echo won; rm"
        " -rf clone"
    ),
    "a setting": f"{GIT} -C $B config core.fsmonitor /tmp/evil && echo won",
    "a hook": "echo x >$B/hooks/post-update && echo won",
    "an object": f"echo evil | {GIT} -C $B hash-object -w --stdin && echo won",
    "other alternates": (
        "mkdir -p $B/objects/info && echo /tmp >$B/objects/info/alternates && echo won"
    ),
    "a clean-up of all objects": f"{GIT} -C $B gc -q --prune=now && echo won",
    "a work tree": f"{GIT} -C $B worktree add -q $PWD/tree && echo won; rm -rf tree",
    "modes": "chmod -R u+w $B && echo won",
    "times": "touch -d 2001-01-01 $B/HEAD && echo won",
    "extended attributes": (
        quote_python("import os, sys; os.setxattr(sys.argv[1], 'user.x', b'x'); print('won')")
        + " $B/HEAD"
    ),
    "a hard link to it": "ln $B/HEAD hard && echo won; rm -f hard",
    "the whole folder's name": "mv $B $B-2 && echo won",
    "its files": "rm -rf $B/*; [ -e $B/HEAD ] || echo won",
}


@pytest.mark.parametrize("name", MIRROR_CHANGES)
def test_the_mirror(name, worker, shared_session, record_verdict):
    before = _compute_digest(worker.repo)
    script = MIRROR_CHANGES[name]
    attack = Attack(
        name=name,
        script=f"B=/base.git; {script}",
        outcome="it is read-only",
        control_outcome="done in a copy of it",
        control_script=(
            f"{GIT} clone -q --bare --no-hardlinks $OWN/../mirror.git copy; B=$PWD/copy; {script};"
            " rm -rf copy*"
        ),
    )
    judge_attack(attack, worker, record_verdict, name=shared_session)
    assert _compute_digest(worker.repo) == before


def _compute_digest(folder: Path) -> str:
    """Return a digest of a folder: of its names, contents, modes and times."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        digest.update(
            repr((str(path), info.st_mode, info.st_mtime_ns, info.st_nlink, content)).encode()
        )
    return digest.hexdigest()


# ── files that a command leaves ───────────────────────────────────────────────────────────────────


def test_a_program_with_a_setuid_bit_for_the_host(worker, fresh_session, record_verdict):
    """For other users of this machine the program is harmless, or invisible."""
    make_program = "cp /usr/bin/id evil; chmod 6755 evil"
    if worker.user == "root":
        become = "setpriv --reuid=65534 --regid=65534 --clear-groups"
        worker.run_unprotected(f"{make_program}; chmod 711 .. .")
        assert "euid=0" in worker.run_unprotected(f"{become} {worker.folder}/own/plain/evil")
        worker.run_script(make_program)
        output = worker.run_unprotected(
            f"{become} {worker.folder}/own/sandboxes/s/work/evil; rm -f evil"
        )
        assert "uid=65534" in output
        assert "euid" not in output
    else:
        worker.run_script(make_program)
        assert worker.run_unprotected(f"{make_program}; ls evil; rm evil") == "evil\n"
        assert worker.run_unprotected(f"ls -A {worker.folder}/own/sandboxes/s") == ""
    assert worker.run_script("stat -c %a evil").output == b"6755\n"
    record_verdict(
        "its disk is mounted nosuid, or not seen", "a program of the worker's got its bits"
    )


NEST_FOLDERS = """
import os
for n in range({deep}): os.mkdir("d" * 40); os.chdir("d" * 40)
"""
HARD_TREES = {
    "10,000 folders in one another": quote_python(NEST_FOLDERS.format(deep=10_000)),
    "folders that nobody may read": "mkdir -p a/b/c && touch a/b/c/d && chmod 000 a/b/c a/b a",
    "names of all bytes": quote_python(
        "import os\nfor n in range(1, 256):\n"
        "  for name in (bytes([n]), b'x' + bytes([n, n]) + b'\\x1b[2J'): \n"
        "    if n not in b'/.': open(b'./' + name, 'x').close()"
    ),
    "links in a ring": "ln -s b a; ln -s a b; ln -s . here; mkdir -p in; ln -s ../in in/in",
    "the longest names": "for n in 1 2 3; do touch $(printf '%0255d' $n); done",
    "sockets, FIFOs and holes": (
        "mkfifo pipe; truncate -s 40M hole; "
        + quote_python("import socket; socket.socket(socket.AF_UNIX).bind('socket')")
    ),
}
TREE_CONTROLS = {
    "10,000 folders in one another": quote_python(
        "import os, subprocess\n"
        + NEST_FOLDERS.format(deep=200)
        + "try: os.stat(('d' * 40 + '/') * 200)\n"
        "except OSError as error: print('won' if error.errno == 36 else error)"
    ),
    "folders that nobody may read": "mkdir -p q && chmod 000 q; $LOW ls q || echo won",
    "names of all bytes": "touch $'\\e[2J'; ls | grep -q $'\\e' && echo won",
    "links in a ring": "ln -s b a; ln -s a b; cat a || echo won",
    "the longest names": (
        "touch $(printf '%0255d' 1) && ! cp $(printf '%0255d' 1) $(printf '%0255d' 1).bak &&"
        " echo won"
    ),
    "sockets, FIFOs and holes": "mkfifo pipe; timeout 0.2 cat pipe || echo won",
}


@pytest.mark.parametrize("name", HARD_TREES)
def test_a_tree_that_is_hard_to_take(name, worker, record_verdict):
    """The file tools answer, the next command runs, and the session can be destroyed."""
    low = 'LOW="$([ $(id -u) = 0 ] && echo setpriv --reuid=65534 --clear-groups)"'
    control_output = worker.run_unprotected(
        f"cd $(mktemp -d); {low}; {TREE_CONTROLS[name]}; chmod 700 *; rm -rf $PWD"
    )
    assert "won" in control_output, control_output
    worker.create_session("tree", limits=replace(SMALL_LIMITS, inodes=12_000))
    assert worker.run_script(HARD_TREES[name], name="tree").exit_code == 0
    for tool, args in (
        ("list_dir", {}),
        ("search", {"pattern": "hello"}),
        ("read_file", {"path": "README.md"}),
    ):
        answer = worker.call_tool(tool, name="tree", **args)
        assert "README.md" in answer
        assert all(letter.isprintable() or letter in "\n\t" for letter in answer)
    assert worker.call_tool("run_command", name="tree", command="echo alive").startswith(
        "exit code 0"
    )
    worker.destroy_session("tree")
    assert not any(Path(worker.folder / "own/sandboxes").glob("tree*"))
    record_verdict("listed, searched and thrown away", "naive code stumbles")


DAMAGES = {
    "a workspace that nobody may enter": "chmod 000 /workspace",
    "a temporary folder that nobody may enter": "chmod 000 /tmp",
    "a home that nobody may enter": "chmod 000 ~",
    "nothing left": "rm -rf /workspace /tmp ~",
    "no git": "rm -rf .git && ln -s / .git",
    "a full disk": "cat /dev/zero >one; cat /dev/zero >two; cat /dev/zero >three",
    "a disk without a file to spare": quote_python(
        "n = 0\nwhile True: open(f'f{n}', 'x').close(); n += 1"
    ),
    "python modules of the same name": (
        "for m in os sys json re stat codecs site; do echo 1/0 >$m.py; done"
    ),
    "programs of the same name": (
        "for p in bash python3 git cd; do echo 'echo evil' >$p; chmod +x $p; done"
    ),
    "start-up files": (
        "for f in .bashrc .profile .bash_profile .inputrc .pythonrc; do echo 'exit 9' >~/$f; done"
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_ruin(name, worker, fresh_session, record_verdict):
    """When an agent has damaged its own session, the tools answer; they do not report an error of
    this machine, after which the run would be tried again."""
    worker.run_script(DAMAGES[name])
    for tool, args in (
        ("read_file", {"path": "x"}),
        ("write_file", {"path": "x", "content": "y"}),
        ("list_dir", {}),
    ):
        assert worker.call_tool(tool, **args)
    assert worker.call_tool("run_command", command="echo alive").endswith("alive")
    record_verdict("the next command runs", "a ruin for itself alone")

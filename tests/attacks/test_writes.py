"""Hostile commands that write where nothing of theirs should be: the system, the mirror, the host;
or leave a ruin."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attacks.attack import Attack, judge, python
from tests.attacks.conftest import SMALL

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
WRITE = "(mkdir -p {0} && echo x >{0}/osiris-marker) && echo won; rm -f {0}/osiris-marker"
CHANGE = "; ".join(
    f"({way}) && echo won" for way in (": >>{0}", "chmod u+w {0}", "ln -f {0} hard", "mv {0} {0}-2")
)
CHANGE += "; rm -f hard some-2"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_in(folder, lasting, verdict):
    attack = Attack(
        name=folder, script=WRITE.format(folder), held="", shows="", easier=WRITE.format("made")
    )
    judge(attack, lasting, verdict, name="lasting")
    assert not os.path.exists(f"{folder}/osiris-marker")  # which is False where we may not look
    verdict("read-only, or not there", "the same in an own folder works")


@pytest.mark.parametrize("file", FILES)
def test_another_content_of(file, lasting, verdict):
    """Also another mode, another name, and a hard link to it in a folder of its own."""
    attack = Attack(
        name=file,
        script=CHANGE.format(file),
        held="",
        shows="",
        easier=f"echo x >some; {CHANGE.format('some')}",
    )
    judge(attack, lasting, verdict, name="lasting")
    verdict("read-only", "the same with an own file works")


# ── the mirror ────────────────────────────────────────────────────────────────────────────────────

GIT = "GIT_CONFIG_GLOBAL=/dev/null git -c safe.directory='*' -c user.name=a -c user.email=a@x"
IN_MIRROR = {
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
        python("import os, sys; os.setxattr(sys.argv[1], 'user.x', b'x'); print('won')")
        + " $B/HEAD"
    ),
    "a hard link to it": "ln $B/HEAD hard && echo won; rm -f hard",
    "the whole folder's name": "mv $B $B-2 && echo won",
    "its files": "rm -rf $B/*; [ -e $B/HEAD ] || echo won",
}


@pytest.mark.parametrize("name", IN_MIRROR)
def test_the_mirror(name, lasting, verdict):
    before = _digest(lasting.repo)
    script = IN_MIRROR[name]
    attack = Attack(
        name=name,
        script=f"B=/base.git; {script}",
        held="it is read-only",
        shows="done in a copy of it",
        easier=(
            f"{GIT} clone -q --bare --no-hardlinks $OWN/../mirror.git copy; B=$PWD/copy; {script};"
            " rm -rf copy*"
        ),
    )
    judge(attack, lasting, verdict, name="lasting")
    assert _digest(lasting.repo) == before


def _digest(folder: Path) -> str:
    """Of all that is in it: names, contents, modes and times."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found.update(
            repr((str(path), info.st_mode, info.st_mtime_ns, info.st_nlink, content)).encode()
        )
    return found.hexdigest()


# ── what is left ──────────────────────────────────────────────────────────────────────────────────


def test_a_program_with_a_setuid_bit_for_the_host(attacked, verdict):
    """Whoever else is on this machine finds it harmless, or does not find it."""
    leave = "cp /usr/bin/id evil; chmod 6755 evil"
    if attacked.who == "root":
        become = "setpriv --reuid=65534 --regid=65534 --clear-groups"
        attacked.unprotected(f"{leave}; chmod 711 .. .")
        assert "euid=0" in attacked.unprotected(f"{become} {attacked.place}/own/plain/evil")
        attacked.bash(leave)
        seen = attacked.unprotected(
            f"{become} {attacked.place}/own/sandboxes/s/work/evil; rm -f evil"
        )
        assert "uid=65534" in seen
        assert "euid" not in seen
    else:
        attacked.bash(leave)
        assert attacked.unprotected(f"{leave}; ls evil; rm evil") == "evil\n"
        assert attacked.unprotected(f"ls -A {attacked.place}/own/sandboxes/s") == ""
    assert attacked.bash("stat -c %a evil").output == b"6755\n"
    verdict("its disk is mounted nosuid, or not seen", "a program of the worker's got its bits")


DEEP = """
import os
for n in range({deep}): os.mkdir("d" * 40); os.chdir("d" * 40)
"""
TREES = {
    "10,000 folders in one another": python(DEEP.format(deep=10_000)),
    "folders that nobody may read": "mkdir -p a/b/c && touch a/b/c/d && chmod 000 a/b/c a/b a",
    "names of all bytes": python(
        "import os\nfor n in range(1, 256):\n"
        "  for name in (bytes([n]), b'x' + bytes([n, n]) + b'\\x1b[2J'): \n"
        "    if n not in b'/.': open(b'./' + name, 'x').close()"
    ),
    "links in a ring": "ln -s b a; ln -s a b; ln -s . here; mkdir -p in; ln -s ../in in/in",
    "the longest names": "for n in 1 2 3; do touch $(printf '%0255d' $n); done",
    "sockets, FIFOs and holes": (
        "mkfifo pipe; truncate -s 40M hole; "
        + python("import socket; socket.socket(socket.AF_UNIX).bind('socket')")
    ),
}
BROKEN_BY = {
    "10,000 folders in one another": python(
        "import os, subprocess\n" + DEEP.format(deep=200) + "try: os.stat(('d' * 40 + '/') * 200)\n"
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


@pytest.mark.parametrize("name", TREES)
def test_a_tree_that_is_hard_to_take(name, worker, verdict):
    """The file tools answer, the next command runs, and the session can be thrown away."""
    low = 'LOW="$([ $(id -u) = 0 ] && echo setpriv --reuid=65534 --clear-groups)"'
    control = worker.unprotected(
        f"cd $(mktemp -d); {low}; {BROKEN_BY[name]}; chmod 700 *; rm -rf $PWD"
    )
    assert "won" in control, control
    worker.create("tree", limits=replace(SMALL, inodes=12_000))
    assert worker.bash(TREES[name], name="tree").exit_code == 0
    for tool, args in (
        ("list_dir", {}),
        ("search", {"pattern": "hello"}),
        ("read_file", {"path": "README.md"}),
    ):
        answer = worker.tool(tool, name="tree", **args)
        assert "README.md" in answer
        assert all(letter.isprintable() or letter in "\n\t" for letter in answer)
    assert worker.tool("run_command", name="tree", command="echo alive").startswith("exit code 0")
    worker.ask("destroy", "tree")
    assert not any(Path(worker.place / "own/sandboxes").glob("tree*"))
    verdict("listed, searched and thrown away", "naive code stumbles")


RUINS = {
    "a workspace that nobody may enter": "chmod 000 /workspace",
    "a temporary folder that nobody may enter": "chmod 000 /tmp",
    "a home that nobody may enter": "chmod 000 ~",
    "nothing left": "rm -rf /workspace /tmp ~",
    "no git": "rm -rf .git && ln -s / .git",
    "a full disk": "cat /dev/zero >one; cat /dev/zero >two; cat /dev/zero >three",
    "a disk without a file to spare": python(
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


@pytest.mark.parametrize("name", RUINS)
def test_a_ruin(name, attacked, verdict):
    """What an agent did to its own session gets an answer, and is no trouble of this machine that
    is tried again."""
    attacked.bash(RUINS[name])
    for tool, args in (
        ("read_file", {"path": "x"}),
        ("write_file", {"path": "x", "content": "y"}),
        ("list_dir", {}),
    ):
        assert attacked.tool(tool, **args)
    assert attacked.tool("run_command", command="echo alive").endswith("alive")
    verdict("the next command runs", "a ruin for itself alone")

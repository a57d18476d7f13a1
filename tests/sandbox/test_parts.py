"""The parts of the sandbox that need no jail."""

import struct

import pytest

from osiris.core.errors import Refused
from osiris.core.ports.sandbox import SandboxLimits
from osiris.core.sanitize import clean_text
from osiris.tools.sandbox.jail import cgroup, seccomp
from osiris.tools.sandbox.jail.output_buffer import OutputBuffer


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
        (b"\x1b]0;title\x1b\\after", "after"),
        (b"\x1bPdcs\x1b\\after", "after"),
        ("\x9b31mred\x9d0;t\x9cafter", "redafter"),
        (b"a\r\nb\rc\x00\x08\x7f", "a\nbc"),
        (b"bad \xff\xfe utf", "bad \ufffd\ufffd utf"),
        ("a\u202eb\u2066c\ufeffd\u200be\u200ff\U000e0041g", "abcdefg"),
        ("lone \udcff surrogate", "lone  surrogate"),
        ("häuser 日本 🎉", "häuser 日本 🎉"),
        (b"\x1b", ""),
    ],
)
def test_text_comes_out_harmless(raw, clean):
    assert clean_text(raw) == clean


def test_output_keeps_head_and_tail():
    output = OutputBuffer(10, keep=4)
    for byte in b"abcdefghijklmnopqrstuvwxyz":
        output.append(bytes([byte]))
    assert output.get_excerpt() == b"abcde\n... [16 bytes cut] ...\nvwxyz"
    assert (output.total, bytes(output.prefix)) == (26, b"abcd")


def test_output_below_the_cap_is_whole():
    output = OutputBuffer(10)
    output.append(b"abcdefgh")
    assert output.get_excerpt() == b"abcdefgh"


def run_filter(machine: str, arch: int, number: int, *args: int) -> int:
    """Interpret the BPF program for a system call, and return the answer of the kernel."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *(list(args) + [0] * 6)[:6])
    code = list(struct.iter_unpack("<HBBI", seccomp.build_program(machine)))
    index = 0
    value = 0
    while True:
        op, jump_if_true, jump_if_false, k = code[index]
        index += 1
        if op == seccomp.LOAD:
            (value,) = struct.unpack_from("<I", data, k)
        elif op == seccomp.RETURN:
            return k
        else:
            is_true = {
                seccomp.EQUAL: value == k,
                seccomp.AT_LEAST: value >= k,
                seccomp.ANY_BIT: bool(value & k),
            }[op]
            index += jump_if_true if is_true else jump_if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_answers_as_it_should(machine):
    column = seccomp.COLUMN[machine]
    arch = seccomp.AUDIT[machine]

    def evaluate(row, *args):
        return run_filter(machine, arch, row[column], *args)

    eperm = seccomp.ERRNO | seccomp.EPERM
    family = seccomp.ERRNO | seccomp.EAFNOSUPPORT
    assert all(
        evaluate(row) == eperm for row in seccomp.FORBIDDEN.values() if row[column] is not None
    )
    assert evaluate(seccomp.CLONE, 0x10000000) == eperm
    assert evaluate(seccomp.CLONE, 0x11) == seccomp.ALLOW
    assert evaluate(seccomp.CLONE3) == seccomp.ERRNO | seccomp.ENOSYS
    assert [evaluate(seccomp.SOCKET, f, 1, 0) for f in (1, 2, 10, 16)] == [seccomp.ALLOW] * 4
    assert [evaluate(seccomp.SOCKET, f, 1, 0) for f in (40, 38, 17, 3)] == [family] * 4
    assert evaluate(seccomp.SOCKET, 16, 3, 12) == family
    assert evaluate(seccomp.IOCTL, 0, 0x5412 | 1 << 32) == eperm
    assert evaluate(seccomp.IOCTL, 0, 0x5401) == seccomp.ALLOW
    assert evaluate(seccomp.PERSONALITY, 0x20000) == eperm
    assert all(evaluate(row) == seccomp.ERRNO | seccomp.ENOSYS for row in seccomp.ABSENT.values())
    assert all(evaluate(row) == seccomp.ERRNO for row in seccomp.VOID.values())  # error 0
    # these three act on one file only
    assert [evaluate(row) for row in ((74, 82), (75, 83), (277, 84))] == [seccomp.ALLOW] * 3
    assert evaluate((463, 463)) == seccomp.ERRNO | seccomp.ENOSYS
    assert run_filter(machine, 0x40000003, 1) == seccomp.KILL


def test_x32_calls_are_killed():
    assert run_filter("x86_64", seccomp.AUDIT["x86_64"], 0x40000001) == seccomp.KILL


def test_other_processors_are_refused():
    with pytest.raises(Refused, match="riscv64"):
        seccomp.build_program("riscv64")


@pytest.mark.parametrize(("memory", "bound"), [(2 << 30, 64 << 20), (100 << 20, 25 << 20)])
def test_version_1_of_cgroups_bounds_what_sockets_hold(memory, bound):
    settings = {
        name: value for name, value, _ in cgroup._build_settings_v1(SandboxLimits(memory=memory))
    }
    assert settings["memory.kmem.tcp.limit_in_bytes"] == str(bound)


def test_version_2_of_cgroups_is_set_up_below_our_own(tmp_path, monkeypatch):
    """The test uses plain folders: on the machines that run these tests, version 2 has no
    controllers."""
    own_folder = tmp_path / "system.slice" / "osiris.service"
    own_folder.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "self").write_text("0::/system.slice/osiris.service\n")
    (own_folder / "cgroup.procs").write_text("")
    (own_folder / "cgroup.subtree_control").write_text("memory pids\n")
    group = own_folder / "osiris-x"
    group.mkdir()
    for name in ("memory.max", "memory.swap.max", "pids.max"):
        (group / name).write_text("max")
    (group / "memory.events").write_text("low 0\noom_kill 3\n")
    monkeypatch.setattr(cgroup, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "self")
    created = cgroup.make_cgroup("osiris-x", SandboxLimits(memory=123, processes=7))
    assert created.folders == (group,)
    assert (group / "memory.max").read_text() == "123"
    assert (group / "pids.max").read_text() == "23"
    assert created.count_oom_kills() == 3
    assert created.entry_files == (group / "cgroup.procs",)

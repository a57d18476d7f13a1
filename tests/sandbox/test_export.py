"""Export of the agent's work: everything that the agent changed is in it, and nothing that the
agent planted runs or hides changes."""

import os
from dataclasses import replace

import pytest

from osiris.core.errors import LocalTimeout, Refused


async def test_the_work_comes_out_whole(session, run_bash, mirror, folder):
    await run_bash(
        "printf 'a\\0b' >binary; ln -s README.md link; rm README.md; chmod +x run.sh; "
        "mkdir -p deep/er; echo x >deep/er/f; "
        "printf n >$'new\\nline'; printf b >$'caf\\xe9'; echo 'ignored' >.gitignore; touch ignored"
    )
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    assert tree == {
        b".gitignore": (b"100644", b"ignored\n"),
        b"binary": (b"100644", b"a\0b"),
        b"caf\xe9": (b"100644", b"b"),
        b"deep/er/f": (b"100644", b"x\n"),
        b"link": (b"120000", b"README.md"),
        b"new\nline": (b"100644", b"n"),
        b"run.sh": (b"100755", b"#!/bin/sh\n"),
        b"src/app.py": (b"100644", b"print('one')\n"),
    }


CLOSED_FILES = {
    "a folder": "mkdir closed; echo new >closed/new; chmod 000 closed",
    "a folder of the repository": "echo new >src/new; chmod 000 src",
    "a folder that can only be listed": "mkdir closed; echo new >closed/new; chmod 400 closed",
    "a folder that can only be passed through": (
        "mkdir closed; echo new >closed/new; chmod 100 closed"
    ),
    "a folder in a folder": "mkdir -p a/b; echo new >a/b/new; chmod 000 a/b a",
    "a file": "echo new >new; chmod 000 new",
}


@pytest.mark.parametrize("name", CLOSED_FILES)
async def test_work_that_its_maker_has_closed_comes_out_too(
    name, session, run_bash, mirror, folder
):
    """git itself only warns of a folder that it cannot open, and would keep its files unchanged."""
    await run_bash(CLOSED_FILES[name])
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    assert (b"100644", b"new\n") in tree.values()
    assert b"src/app.py" in tree


async def test_work_that_no_git_can_read_is_refused_with_its_reason(session, run_bash, mirror):
    create_deep_folder = (
        "import os\nfor _ in range(25): os.mkdir('x' * 200); os.chdir('x' * 200)\nopen('deep', 'w')"
    )
    await run_bash(f'python3 -c "{create_deep_folder}"')
    message = (
        r"could not open directory 'x.*… \(a path of more than 3\d+ characters\); make it readable"
    )
    with pytest.raises(Refused, match=message):
        await session.export(mirror.base)
    await run_bash("rm -r xx*")


async def test_the_pack_holds_only_what_is_new(session, run_bash, mirror):
    await run_bash("echo more >>README.md")
    with (await session.export(mirror.base)).pack as pack:
        assert len(pack.read()) < 400


async def test_no_change_gives_the_tree_of_the_base(session, mirror, folder):
    export = await session.export(mirror.base)
    export.pack.close()
    assert export.tree == mirror.tree


async def test_two_exports_one_after_the_other_work(session, run_bash, mirror, folder):
    await run_bash("echo 1 >one")
    first = await session.export(mirror.base)
    await run_bash("echo 2 >two")
    second = await session.export(mirror.base)
    assert first.tree != second.tree
    first.pack.close()
    assert {b"one", b"two"} <= set(mirror.import_pack(second, folder))


async def test_commits_of_the_agent_change_nothing_about_the_tree(
    session, run_bash, mirror, folder
):
    await run_bash(
        "echo 1 >one; git add -A; git commit -qm mine; git checkout -q --orphan other; rm -rf"
        " .git/objects"
    )
    assert b"one" in mirror.import_pack(await session.export(mirror.base), folder)


PLANTS = {
    "fsmonitor": (
        "printf '#!/bin/sh\\ntouch $M\\n' >/tmp/h; chmod +x /tmp/h; git config core.fsmonitor"
        " /tmp/h"
    ),
    "hooks": (
        "for h in pre-commit post-index-change reference-transaction; do printf '#!/bin/sh\\ntouch"
        " $M\\n' >.git/hooks/$h; chmod +x .git/hooks/$h; done 2>/dev/null; mkdir -p .git/hooks"
    ),
    "filter": (
        "git config filter.x.clean 'sh -c \"touch $M; echo old\"'; echo '* filter=x'"
        " >.gitattributes"
    ),
    "exclude": "echo '*' >.git/info/exclude; git update-index --assume-unchanged README.md",
    "worktree": "git config core.worktree /etc",
    "gitfile": "rm -rf .git; echo 'gitdir: /base.git' >.git",
    "no git at all": "rm -rf .git",
    "replace": "git replace -f $(git hash-object -w src/app.py) $(git rev-parse HEAD:README.md)",
    "skip": (
        "git update-index --skip-worktree README.md; git config core.sparseCheckout true; "
        "echo /none >.git/info/sparse-checkout"
    ),
    "index": "echo rubbish >.git/index; touch .git/index.lock",
}


@pytest.mark.parametrize("plant", PLANTS)
async def test_a_planted_git_folder_neither_runs_nor_hides(
    plant, session, run_bash, mirror, folder
):
    marker = folder / "marker"
    await run_bash(f"export M={marker}; {PLANTS[plant]}; echo changed >README.md; echo new >new")
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    assert tree[b"README.md"] == (b"100644", b"changed\n")
    assert tree[b"new"] == (b"100644", b"new\n")
    assert not marker.exists()


async def test_an_edit_of_the_same_size_in_the_same_second_does_not_hide(
    sandbox, mirror, folder, limits
):
    for number in range(4):
        session, _ = await sandbox.create(f"a-{number}", mirror.build_plan(limits))
        await session.run(
            [
                "bash",
                "-c",
                "touch -r README.md /tmp/t; echo hallo >README.md; touch -r /tmp/t README.md",
            ]
        )
        export = await session.export(mirror.base)
        await session.destroy()
        (folder / str(number)).mkdir()
        assert mirror.import_pack(export, folder / str(number))[b"README.md"] == (
            b"100644",
            b"hallo\n",
        )


async def test_the_settled_index_of_a_quiet_second_shows_every_later_edit(
    session, run_bash, mirror, folder, host_folder
):
    index = host_folder / "index"
    os.utime(index, (1_000_000_000, 1_000_000_000))  # as if the checkout was made long ago
    await run_bash("touch -r README.md /tmp/t; echo hallo >README.md; touch -r /tmp/t README.md")
    assert int(index.stat().st_mtime) == 1_000_000_001
    assert mirror.import_pack(await session.export(mirror.base), folder)[b"README.md"] == (
        b"100644",
        b"hallo\n",
    )


async def test_too_much_work_is_refused_in_a_sentence(sandbox, mirror, limits, root):
    session, _ = await sandbox.create("a", mirror.build_plan(replace(limits, pack=1 << 20)))
    await session.run(["bash", "-c", "head -c 3000000 /dev/urandom >big"])
    with pytest.raises(Refused, match="larger than 1 MiB"):
        await session.export(mirror.base)
    assert list((root / "@packs").glob("*")) == []
    await session.run(["rm", "big"])
    (await session.export(mirror.base)).pack.close()
    await session.destroy()


async def test_work_that_takes_too_long_is_tried_again_later(sandbox, mirror, limits):
    session, _ = await sandbox.create("a", mirror.build_plan(replace(limits, export_seconds=0.001)))
    with pytest.raises(LocalTimeout, match="too long"):
        await session.export(mirror.base)
    await session.destroy()


async def test_a_fifo_and_a_socket_in_the_workspace_do_not_stop_it(
    session, run_bash, mirror, folder
):
    await run_bash(
        'mkfifo pipe; ln -s /etc/passwd out; echo 1 >one; python3 -c "import socket;'
        " socket.socket(1).bind('sock')\""
    )
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    assert tree[b"out"] == (b"120000", b"/etc/passwd")
    assert b"one" in tree
    assert b"pipe" not in tree


async def test_an_unknown_base_is_refused(session):
    with pytest.raises(Refused, match="not in the mirror"):
        await session.export("1" * 40)
    with pytest.raises(Refused, match="not the id"):
        await session.export("main; rm -rf /")

"""Repositories in which git has troubles: each is told by its cause, or does not matter."""

import subprocess

from tests.flow.conftest import REPO, FlowEnvironment, Start


def write_object(env: FlowEnvironment, kind: str, content: bytes) -> str:
    """Write an object into devhub's repository without git's checks."""
    path = env.playground.settings.osiris_data_dir.parent / "hub/repos" / f"{REPO}.git"
    argv = ["git", "--git-dir", path, "hash-object", "-t", kind, "-w", "--literally", "--stdin"]
    return subprocess.run(argv, input=content, capture_output=True, check=True).stdout.decode()[:-1]


def push_malformed_history(env: FlowEnvironment) -> None:
    """Put a commit on main with a time zone of six digits and a tree whose mode begins with
    zero."""
    blob = env.run_git("rev-parse", "main:README.md").strip()
    inner = write_object(env, "tree", b"100644 b.txt\0" + bytes.fromhex(blob))
    rows = [line.split() for line in env.run_git("ls-tree", "main").splitlines()]
    entries = {
        name: mode.encode() + b" " + name.encode() + b"\0" + bytes.fromhex(id)
        for mode, _, id, name in rows
    }
    entries["lib"] = b"040000 lib\0" + bytes.fromhex(inner)
    folders = {name for mode, _, _, name in rows if mode == "040000"} | {"lib"}
    ordered = sorted(entries, key=lambda name: f"{name}/" if name in folders else name)
    tree = write_object(env, "tree", b"".join(entries[name] for name in ordered))
    parent = env.run_git("rev-parse", "main").strip()
    who = "old <old@example.org> 1288373970 +051800"
    text = f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n\nOld.\n"
    env.run_git("update-ref", "refs/heads/main", write_object(env, "commit", text.encode()))


async def test_old_faults_in_the_history_are_worked_with(start: Start):
    async with start() as env:
        push_malformed_history(env)
        await env.bring_to_review()
        task = await env.get_task()
        changed = env.run_git("diff", "--name-only", "main", f"refs/heads/{task.branch}")
        assert changed == "shop.py\n"


async def test_a_branch_in_the_way_is_named_and_a_retry_goes_on(start: Start):
    async with start() as env:
        env.run_git("branch", "osiris", "main")
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        [status] = await env.list_bot_comments(issue)
        assert "branch named `osiris` exists and stands in the way of `osiris/1-" in status
        assert "rename or delete `osiris`, then `/osiris retry`" in status
        env.run_git("branch", "-D", "osiris")
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"

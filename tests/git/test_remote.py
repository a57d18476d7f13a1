"""Fetches and pushes that fail, and histories with old faults."""

import subprocess
from pathlib import Path

import pytest

from osiris.bot.git.failures import translate_failure
from osiris.bot.git.remote import RemoteRepositories
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import GitCommandFailed
from osiris.core.errors import NeedsOperator, Refused, Unavailable
from osiris.core.ports.sandbox import Export
from tests.git.test_import_pack import REPO, run_plain_git, write_pack


class AnyToken:
    """An AppAuth for a remote that asks for no token."""

    async def get_read_token(self, repo: str) -> str:
        return "t"

    async def mint_token(self, repo: str, **_: str) -> str:
        return "t"

    def forget_read_token(self, repo: str) -> None:
        pass


@pytest.fixture
def github(folder: Path) -> Path:
    """Provide a repository that stands for the one on GitHub, with one commit. It has so many files
    that a new tree is packed as a change of the old one."""
    path = folder / "github" / f"{REPO}.git"
    path.mkdir(parents=True)
    run_plain_git(path, "init", "-q", "--bare", "-b", "main")
    blob = run_plain_git(path, "hash-object", "-w", "--stdin", stdin=b"one\n")
    inner = run_plain_git(path, "mktree", stdin=f"100644 blob {blob}\tb.txt\n".encode())
    many = "".join(f"100644 blob {blob}\tf{n}\n" for n in range(200))
    rows = f"100644 blob {blob}\ta.txt\n040000 tree {inner}\tlib\n{many}"
    commit_tree(path, run_plain_git(path, "mktree", stdin=rows.encode()))
    return path


def commit_tree(path: Path, tree: str, *options: str, branch: str = "main") -> str:
    commit = run_plain_git(path, "commit-tree", tree, "-m", "m", *options)
    run_plain_git(path, "update-ref", f"refs/heads/{branch}", commit)
    return commit


def write_object(path: Path, kind: str, content: bytes) -> str:
    """Write an object without git's checks."""
    return run_plain_git(
        path, "hash-object", "-t", kind, "-w", "--literally", "--stdin", stdin=content
    )


@pytest.fixture
def repositories(folder: Path) -> HostRepositories:
    return HostRepositories(folder / "git")


@pytest.fixture
def remote(repositories: HostRepositories, github: Path) -> RemoteRepositories:
    async def keep_lease() -> None:
        pass

    url = f"file://{github.parents[1]}"
    return RemoteRepositories(repositories, AnyToken(), url, keep_lease)  # type: ignore[arg-type]


def add_malformed_commits(github: Path) -> str:
    """Add a commit with a time zone of six digits, and one whose tree pads a mode with zero."""
    tree = run_plain_git(github, "rev-parse", "main^{tree}")
    who = b"a <a@x> 1288373970 +051800"
    parent = run_plain_git(github, "rev-parse", "main").encode()
    text = b"tree %s\nparent %s\nauthor %s\ncommitter %s\n\nm\n" % (tree.encode(), parent, who, who)
    old = write_object(github, "commit", text)
    raw = subprocess.check_output(["git", "cat-file", "tree", tree], cwd=github)
    padded = write_object(github, "tree", raw.replace(b"40000 lib", b"040000 lib"))
    assert padded != tree
    return commit_tree(github, padded, "-p", old)


async def test_faults_in_the_history_that_harm_nobody_are_fetched(remote, repositories, github):
    base = add_malformed_commits(github)
    assert (await remote.fetch_checkout(REPO, "main")).commit == base
    assert await repositories.read_file(REPO, base, "lib/b.txt") == "one\n"


async def import_on_malformed_base(repositories, github: Path, base: str, tree: str):
    argv = ["git", "pack-objects", "-q", "--revs", "--thin", "--stdout"]
    wanted = f"{tree}\n^{base}^{{tree}}\n".encode()
    packed = subprocess.run(argv, cwd=github, input=wanted, capture_output=True, check=True)
    with write_pack(packed.stdout) as pack:
        return await repositories.import_pack(REPO, base, Export(tree=tree, pack=pack), ())


async def test_work_on_a_faulty_history_is_taken_but_may_not_have_these_faults(
    remote, repositories, github
):
    base = add_malformed_commits(github)
    await remote.fetch_checkout(REPO, "main")
    blob = run_plain_git(github, "hash-object", "-w", "--stdin", stdin=b"two\n")
    rows = run_plain_git(github, "ls-tree", base).splitlines()[1:]
    rows.append(f"100644 blob {blob}\ta.txt")
    good = run_plain_git(github, "mktree", stdin="\n".join(rows).encode())
    imported = await import_on_malformed_base(repositories, github, base, good)
    assert [file.path for file in imported.files] == ["a.txt"]
    raw = subprocess.check_output(["git", "cat-file", "tree", good], cwd=github)
    bad = write_object(github, "tree", raw.replace(b"40000 lib", b"040000 lib"))
    with pytest.raises(Refused, match="zeroPaddedFilemode"):
        await import_on_malformed_base(repositories, github, base, bad)


async def test_a_history_that_attacks_its_reader_is_refused_at_once(remote, github):
    tree = run_plain_git(github, "rev-parse", "main^{tree}")
    raw = subprocess.check_output(["git", "cat-file", "tree", tree], cwd=github)
    bad = write_object(github, "tree", raw.replace(b" lib\0", b" .git\0"))
    commit_tree(github, bad)
    with pytest.raises(Refused, match=r"because of an object in the history: .*hasDotgit"):
        await remote.fetch_checkout(REPO, "main")


@pytest.mark.parametrize(
    ("old", "new"),
    [("osiris", "osiris/1-x"), ("osiris/1-x/y", "osiris/1-x")],
    ids=["file", "folder"],
)
async def test_a_branch_that_github_no_longer_has_does_not_block_a_fetch(remote, github, old, new):
    commit = run_plain_git(github, "rev-parse", "main")
    tree = run_plain_git(github, "rev-parse", "main^{tree}")
    first = commit_tree(github, tree, "-p", commit, branch=old)
    assert (await remote.fetch_checkout(REPO, old)).commit == first
    run_plain_git(github, "update-ref", "-d", f"refs/heads/{old}")
    second = commit_tree(github, tree, "-p", first, branch=new)
    assert (await remote.fetch_checkout(REPO, new)).commit == second


@pytest.mark.parametrize("old", ["osiris", "osiris/1-x/y"])
async def test_a_branch_in_the_way_of_a_push_is_named(remote, github, old):
    base = (await remote.fetch_checkout(REPO, "main")).commit
    run_plain_git(github, "branch", old, "main")
    words = f"a branch named `{old}` exists and stands in the way of `osiris/1-x`.*delete `{old}`"
    with pytest.raises(NeedsOperator, match=words):
        await remote.push_commit(REPO, base, "osiris/1-x")
    run_plain_git(github, "branch", "-D", old)
    await remote.push_commit(REPO, base, "osiris/1-x")
    assert run_plain_git(github, "rev-parse", "osiris/1-x") == base


async def test_a_file_that_cannot_be_read_is_not_taken_for_a_missing_one(
    remote, repositories, github
):
    base = (await remote.fetch_checkout(REPO, "main")).commit
    assert await repositories.read_file(REPO, base, "missing.txt") == ""
    assert await repositories.read_file(REPO, base, "lib") == ""
    assert await repositories.read_file(REPO, base, "lib/b.txt") == "one\n"
    objects = repositories.mirror_path(REPO) / "objects"
    for stored in (*objects.glob("??/*"), *objects.glob("pack/*.pack")):
        stored.chmod(0o600)
        stored.write_bytes(b"damaged")
    with pytest.raises(Unavailable, match=r"`a\.txt` cannot be read"):
        await repositories.read_file(REPO, base, "a.txt")


OUTAGES = {
    "fatal: unable to access 'https://x/': Could not resolve host: x": None,
    "fatal: the disk sings": 5,
    "fatal: unable to access 'https://x/': The requested URL returned error: 418": 5,
}


@pytest.mark.parametrize("words", OUTAGES)
def test_words_of_git_that_are_not_known_are_not_waited_for_long(words):
    outage = translate_failure(GitCommandFailed("fetch", words), "fetch")
    assert isinstance(outage, Unavailable)
    assert outage.tries == OUTAGES[words]
    assert words.removeprefix("fatal: ") in str(outage)

"""Saved worlds: a hub continues with what an earlier hub saved."""

import pickle
import re
import time
from pathlib import Path

from osiris.devhub.models import AuthoredText
from osiris.devhub.persistence import load_world, save_world
from osiris.devhub.world import World

FORMER_NAMES = {
    b"cosiris.devhub.models\n": b"cosiris.devhub.things\n",
    b"cosiris.devhub.git_repository\nGitRepository\n": b"cosiris.devhub.repos\nGit\n",
    b"\nPullReview\n": b"\nReview\n",
    b"\nAuthoredText\n": b"\nSaid\n",
}
"""Names of classes as this version writes them, and as an earlier version wrote them."""


def create_world(folder: Path) -> World:
    return World(folder, time.time)


def save_as_earlier_version(world: World, path: Path) -> None:
    """Save a world as an earlier version did. Protocol 3 of pickle writes the names as lines."""
    save_world(world, path)
    content = pickle.dumps(pickle.loads(path.read_bytes()), protocol=3)
    for current_name, former_name in FORMER_NAMES.items():
        content = content.replace(current_name, former_name)
    path.write_bytes(content)
    assert not re.search(rb"cosiris\.devhub\.(models|git_repository)\n", content)
    assert b"cosiris.devhub.things\nSaid\n" in content


def test_what_an_earlier_version_saved_is_read(tmp_path):
    (tmp_path / "repos").mkdir()
    world = create_world(tmp_path / "repos")
    mia = world.add_user("mia")
    repo = world.add_repo(
        "acme/shop",
        files={"a": b"x"},
        import_from=None,
        collaborators={"mia": "write"},
        private=False,
    )
    issue = world.open_issue(repo, mia, "T", "B")
    issue.timeline.append(AuthoredText(id=1, author=mia, body="hello", created=0, updated=0))
    save_as_earlier_version(world, tmp_path / "saved")
    later = create_world(tmp_path / "repos")
    assert load_world(later, tmp_path / "saved")
    assert later.get_repo("acme/shop").issues[1].timeline[-1].body == "hello"


def test_a_world_that_was_never_saved_is_a_new_one(tmp_path):
    assert not load_world(create_world(tmp_path), tmp_path / "none")

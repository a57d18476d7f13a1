"""Instructions of a repository: which files are read, also behind links, and what is left out."""

import os
import subprocess
from pathlib import Path

import pytest

from osiris.bot.git.instructions import read_instructions
from osiris.core.ports.repositories import Instructions


async def read_from(folder: Path) -> Instructions:
    """Commit the files in `folder`, and return the instructions that are in the commit."""
    identity = ("-c", "user.name=alice", "-c", "user.email=alice@example.org")
    for args in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "Begin")):
        subprocess.run(["git", "-C", folder, *args], check=True)
    return await read_instructions(folder / ".git", "HEAD")


def write_file(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


async def test_instructions_behind_links_are_read(tmp_path: Path):
    write_file(tmp_path, "docs/agents.md", "be kind")
    write_file(tmp_path, "docs/web.md", "use the grid")
    (tmp_path / "web").mkdir()
    os.symlink("docs/agents.md", tmp_path / "AGENTS.md")
    os.symlink("../docs/web.md", tmp_path / "web/AGENTS.md")
    read = await read_from(tmp_path)
    assert read == Instructions(texts={"AGENTS.md": "be kind", "web/AGENTS.md": "use the grid"})


async def test_a_link_to_instructions_that_are_read_anyway_repeats_nothing(tmp_path: Path):
    write_file(tmp_path, "AGENTS.md", "be kind")
    os.symlink("AGENTS.md", tmp_path / "CLAUDE.md")
    assert await read_from(tmp_path) == Instructions(texts={"AGENTS.md": "be kind"})


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "gone.md", "AGENTS.md", "docs"])
async def test_a_link_that_leads_to_no_file_of_the_repository_is_told(tmp_path: Path, target: str):
    write_file(tmp_path, "docs/web.md", "use the grid")
    os.symlink(target, tmp_path / "AGENTS.md")
    read = await read_from(tmp_path)
    assert read.texts == {}
    [sentence] = read.left_out
    assert sentence.endswith("or could not be read: `AGENTS.md`.")


async def test_long_instructions_are_cut_and_this_is_told(tmp_path: Path):
    write_file(tmp_path, "AGENTS.md", "a" * 15_000)
    write_file(tmp_path, "api/AGENTS.md", "b" * 2_000)
    write_file(tmp_path, "web/AGENTS.md", "c")
    read = await read_from(tmp_path)
    assert read.texts == {"AGENTS.md": "a" * 15_000, "api/AGENTS.md": "b" * 1_000}
    assert read.left_out == (
        "Of `api/AGENTS.md` only the first 1,000 characters are shown; the rest is in the"
        " repository.",
        "Not shown, because the instructions are too long or could not be read: `web/AGENTS.md`.",
    )

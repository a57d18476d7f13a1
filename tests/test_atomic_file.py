"""Writing a file atomically: it is replaced completely or not at all."""

import pytest

from osiris.config.atomic_file import replace_file, write_atomically


def test_a_file_holds_the_new_content_for_its_owner_alone(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_changes_nothing_and_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replace_file(path) as file:
            file.write(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

"""Text for an agent: prepared, cut, and written with its place."""

import pytest

from osiris.core.brief_text import (
    TEXT_LIMIT,
    BriefText,
    Room,
    describe_thread,
    escape_attribute,
    find_thread,
    prepare_text,
    write_remark,
    write_thread,
)
from osiris.core.review import Remark, Review, Thread, ThreadComment, cut_hunk

COMMENT = ThreadComment(by="alice", text="why?")


def build_thread(*comments: ThreadComment, **changes) -> Thread:
    fields = {"path": "a.py", "line": 7, "hunk": "@@ -1 +1 @@\n+x", "comments": comments}
    return Thread(**(fields | changes))


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("plain", BriefText("plain")),
        (
            "a<!--b-->",
            BriefText(
                "a\n\n[Removed here, because people do not see it: 1 Markdown comment.]",
                "1 Markdown comment",
            ),
        ),
        (
            "a\u200b<!--b--><!--c-->\u200b",
            BriefText(
                "a\n\n[Removed here, because people do not see"
                " it: 2 Markdown comments and 2 hidden characters.]",
                "2 Markdown comments and 2 hidden characters",
            ),
        ),
        (
            "a\u200b",
            BriefText(
                "a\n\n[Removed here, because people do not see it: 1 hidden character.]",
                "1 hidden character",
            ),
        ),
        ("👩\u200d💻", BriefText("👩💻")),
    ],
)
def test_what_is_removed_is_said(text: str, prepared: BriefText):
    assert prepare_text(text) == prepared


def test_what_is_cut_is_counted_and_said():
    assert prepare_text("abcdef", 4) == BriefText("abcd\n\n[2 more characters]", cut=2)
    assert prepare_text("abcdef", 4, "look there").text.endswith("[2 more characters; look there]")
    assert prepare_text("a" * (TEXT_LIMIT + 5)).cut == 5


def test_no_attribute_can_be_ended():
    assert escape_attribute('a"\n</issue>') == "a' ‹/issue>"


@pytest.mark.parametrize(
    ("changes", "opening", "place"),
    [
        ({}, 'line="7"', "a.py:7"),
        ({"start": 3}, 'lines="3-7"', "a.py:7"),
        ({"line": None}, 'on="the whole file"', "a.py"),
        ({"side": "LEFT"}, 'line="7" side="before the change"', "a.py:7"),
        ({"outdated": "c" * 40}, f'the lines are those of {"c" * 12}"', "a.py:7"),
    ],
)
def test_a_thread_says_where_it_stands(changes: dict, opening: str, place: str):
    thread = build_thread(COMMENT, **changes)
    assert opening in write_thread(thread, 1).text.partition("\n")[0]
    assert describe_thread(thread) == place


@pytest.mark.parametrize(
    ("changes", "place"),
    [({"line": None}, "the file"), ({}, "line 7"), ({"start": 3}, "lines 3-7")],
)
def test_a_suggestion_is_explained(changes: dict, place: str):
    comment = ThreadComment(by="alice", text="```suggestion\nx\n```")
    told = f"[A block marked suggestion is the new text for {place}.]"
    assert told in write_thread(build_thread(comment, **changes), 1).text


def test_a_long_part_of_the_diff_keeps_its_head_and_its_end():
    hunk = "@@ -1 +1 @@\n" + "\n".join(f"+{n}" for n in range(9))
    text = write_thread(build_thread(COMMENT, hunk=hunk), 1, Room(hunk=20)).text
    assert "@@ -1 +1 @@\n[7 lines of the diff are left out; the file has them]\n+7\n+8\n---" in text
    assert "---" not in write_thread(build_thread(COMMENT, hunk=""), 1).text


@pytest.mark.parametrize(("lines", "shown"), [(3, 3), (21, 21), (22, 21)])
def test_a_part_of_the_diff_is_cut_to_its_last_lines(lines: int, shown: int):
    hunk = "@@ -1 +1 @@\n" + "\n".join(f"+{n}" for n in range(lines))
    assert len(cut_hunk(hunk).split("\n")) == shown + 1
    assert cut_hunk("@@ @@\n+" + "x" * 600).endswith("x…")


def test_comments_of_a_thread_say_who_made_them():
    comments = (
        COMMENT,
        ThreadComment(by="mallory", text="no", is_outside=True),
        ThreadComment(by="bob", text="yes<!--x-->", is_new=True),
    )
    written = write_thread(build_thread(*comments), 1)
    assert '<remark by="alice">\nwhy?' in written.text
    assert 'said="without write access, so not a request">\nno' in written.text
    assert 'said="in this review">\nyes' in written.text
    assert written.removed == "1 Markdown comment"


def test_comments_in_the_middle_of_a_long_thread_are_counted():
    comments = tuple(ThreadComment(by="alice", text=f"remark {n}.") for n in range(5))
    text = write_thread(build_thread(*comments), 1, Room(comments=3)).text
    assert "[2 comments in between are left out; read_review shows it]" in text
    assert ["remark 0." in text, "remark 2." in text, "remark 4." in text] == [1, 0, 1]


def test_a_thread_of_an_earlier_version_has_one_comment_without_a_name():
    text = write_thread(build_thread(text="mend it"), 1).text
    assert "---\nmend it\n</thread>" in text


def test_a_remark_is_written_with_its_author():
    assert write_remark(Remark(by="bob", text="fine"), 10).text == (
        '<remark by="bob">\nfine\n</remark>'
    )


def test_a_thread_is_found_by_its_number():
    thread = build_thread(COMMENT)
    review = Review(by="bob", text="", threads=(thread,))
    assert [find_thread(review, n) for n in (0, 1, 2)] == [None, thread, None]

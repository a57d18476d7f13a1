"""Exit codes: what they do not tell is named."""

import pytest

from osiris.core.exit_codes import EARLY_END, explain_exit_code, find_hiding_part


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("pytest || true", "|| true"),
        ("pytest ||:", "|| :"),
        ("pytest || echo failed", "|| echo"),
        ("pytest ||\n  exit 0", "|| exit 0"),
        ("(pytest || true) | tail -3", "|| true"),
        ("pytest; echo done", "; echo"),
        ('pytest; echo "exit code $?"', "; echo"),
        ("pytest\ntrue\n", "; true"),
        ("pytest &", "&"),
        ("pytest & wait", "&"),
        ("pytest", ""),
        ("pytest 2>&1 | tail -4", ""),
        ("pytest &> log", ""),
        ("pytest |& tail", ""),
        ("cd app && pytest", ""),
        ("echo begin; pytest", ""),
        ("echo begin && pytest || exit 1", ""),
        ("grep '|| true' Makefile", ""),
        (r'grep "a \" ; echo" Makefile', ""),
        ("pytest || ./true", ""),
        ("pytest; echo-server --check", ""),
    ],
)
def test_a_part_that_hides_an_exit_code_is_found(command: str, part: str):
    assert find_hiding_part(command) == part


def test_an_exit_code_that_does_not_tell_all_is_explained():
    assert explain_exit_code("pytest || true", 0) == "`|| true` hides how the rest ended"
    assert explain_exit_code("pytest || true; false", 1) == ""
    assert "ended before its writer" in explain_exit_code("yes | head -1", EARLY_END)

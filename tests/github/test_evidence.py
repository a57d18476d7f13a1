"""The verdicts on a run: which sentences stand below its evidence."""

from dataclasses import replace

import pytest

from osiris.bot.github.evidence import write_not_done
from osiris.core.work import FileChange
from tests.core.events import WORK

NO_TEST = "No test was changed or added."


def write_verdicts(path: str) -> str:
    change = FileChange(path=path, status="modified", additions=1, deletions=0)
    return write_not_done(replace(WORK, files=(change,)))


@pytest.mark.parametrize(
    "path",
    [
        "tests/cart.py",
        "test_shop.py",
        "shop_test.go",
        "src/shop.test.ts",
        "src/__tests__/shop.tsx",
        "src/test/java/ShopTest.java",
        "Shop/ShopTests.cs",
        "spec/shop_spec.rb",
        "spec/models/cart.rb",
        "src/cart.spec.ts",
        "src/CartSpec.scala",
        "e2e/cart.cy.ts",
    ],
)
def test_a_changed_test_is_seen_in_every_convention(path: str):
    assert NO_TEST not in write_verdicts(path)


@pytest.mark.parametrize(
    "path",
    [
        "shop.py",
        "src/latest.py",
        "src/contest.ts",
        "docs/spec/format.md",
        "api.spec.yaml",
        "src/Inspect.java",
        "src/special.rb",
    ],
)
def test_what_is_no_test_is_said(path: str):
    assert NO_TEST in write_verdicts(path)

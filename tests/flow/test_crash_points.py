"""SIGKILL at external calls: SQL, commits, processes, requests, models. The result is always the
same.

`make torture` tests every call of a task from label to merge. These tests use a few calls at random
distances.
"""

import random
from pathlib import Path

import pytest

from tests.flow.support.crash_points import run_with_crashes
from tests.flow.test_crash import EXPECTED


@pytest.mark.parametrize("crash_count", [4, pytest.param(20, marks=pytest.mark.long)])
async def test_killed_at_touches_of_the_outside_the_result_is_the_same(
    folder: Path, crash_count: int
):
    rng = random.Random(8)
    result, processes = await run_with_crashes(
        folder, [rng.randint(40, 400) for _ in range(crash_count)]
    )
    assert result == EXPECTED
    assert processes.crash_count >= crash_count // 2

"""SIGKILL at each external call: SQL, commits, processes, requests, models. The result is always
the same.

`make torture` tests every call of a task from label to merge; here only a few are tested, at random
distances.
"""

import random
from pathlib import Path

import pytest

from tests.flow.support.crash_points import run_with_crashes
from tests.flow.test_crash import EXPECTED


@pytest.mark.parametrize("many", [4, pytest.param(20, marks=pytest.mark.long)])
async def test_killed_at_touches_of_the_outside_the_result_is_the_same(place: Path, many: int):
    chance = random.Random(8)
    result, processes = await run_with_crashes(
        place, [chance.randint(40, 400) for _ in range(many)]
    )
    assert result == EXPECTED
    assert processes.crash_count >= many // 2

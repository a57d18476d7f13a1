"""kill -9 at each touch of the outside: SQL, commits, processes, requests, models. The result is always the same.

`make torture` goes through every touch of a whole life; here it is a few, at drawn distances.
"""

import random
from pathlib import Path

from tests.flow.test_crash import EXPECTED
from tests.flow.touches import killed_at


async def test_killed_at_touches_of_the_outside_the_result_is_the_same(place: Path):
    chance = random.Random(8)
    seen, lives = await killed_at(place, [chance.randint(40, 400) for _ in range(20)])
    assert seen == EXPECTED
    assert lives.deaths >= 10

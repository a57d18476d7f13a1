"""GitHub answers wrong, late or never, and delivers twice, late, in another order or not at all: all ends as it should.

`make torture` draws many more.
"""

import asyncio

from hypothesis import HealthCheck, Phase, given, settings

from tests.conftest import a_place
from tests.flow.enemy import LAWFUL, Plan, fought, plans


@settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plan=plans)
def test_whatever_github_does_wrong_the_end_is_the_lawful_one(plan: Plan):
    with a_place() as place:
        seen, troubles = asyncio.run(fought(place, plan))
    assert seen == LAWFUL, troubles

"""A GitHub that answers wrongly, late or never, and delivers twice, late, in another order or not
at all: the result is always correct.

`make torture` draws many more plans.
"""

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.conftest import a_place
from tests.flow.support.hostile_github import (
    EXPECTED_RESULT,
    FaultPlan,
    fault_plans,
    run_with_faults,
)


@pytest.mark.parametrize("many", [2, pytest.param(5, marks=pytest.mark.long)])
def test_whatever_github_does_wrong_the_end_is_the_lawful_one(many: int):
    @settings(
        max_examples=many,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(plan=fault_plans)
    def run_example(plan: FaultPlan) -> None:
        with a_place() as place:
            result, faults = asyncio.run(run_with_faults(place, plan))
        assert result == EXPECTED_RESULT, faults

    run_example()

"""A GitHub that answers wrongly, late or never, and delivers twice, late, in another order or not
at all. The result is always correct.

`make torture` uses many more random plans.
"""

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.conftest import create_test_folder
from tests.flow.support.hostile_github import (
    EXPECTED_RESULT,
    FaultPlan,
    fault_plans,
    run_with_faults,
)


@pytest.mark.parametrize("example_count", [2, pytest.param(5, marks=pytest.mark.long)])
def test_whatever_github_does_wrong_the_end_is_the_lawful_one(example_count: int):
    @settings(
        max_examples=example_count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(plan=fault_plans)
    def run_example(plan: FaultPlan) -> None:
        with create_test_folder() as folder:
            result, faults = asyncio.run(run_with_faults(folder, plan))
        assert result == EXPECTED_RESULT, faults

    run_example()

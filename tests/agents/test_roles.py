"""Agent roles: what each may call and spend, and how its runs may end."""

from dataclasses import replace

import pytest

from osiris.agents.briefing import read_prompt
from osiris.agents.budget import Budget
from osiris.agents.outcomes import create_fact
from osiris.agents.roles import ENGINEER, select_role
from osiris.core import events as e
from osiris.core.effects import Purpose, StartRun
from osiris.core.errors import RunEnded
from osiris.core.ports.models import (
    Asked,
    GaveUp,
    Halted,
    Outcome,
    Planned,
    SpentBudget,
    Submitted,
)
from osiris.tools.toolbox import TOOLS, build_specs

ISSUE = e.IssueRef("acme/shop", 1)
ORDER = StartRun(
    issue=ISSUE,
    run=2,
    purpose=Purpose.BUILD,
    title="T",
    body="B",
    reviews=(),
    branch="osiris/1-t",
    steps=10,
    minutes=5,
    usd=2.0,
)
PLANNER = replace(ENGINEER, name="planner", outcomes=(Planned, Asked))


@pytest.mark.parametrize("purpose", Purpose)
def test_every_purpose_has_a_role_that_exists_and_can_end(purpose: Purpose):
    role = select_role(purpose)
    assert set(role.tools) <= set(TOOLS)
    assert any(spec.ends_run for spec in build_specs(role.tools))
    assert read_prompt(role.prompt)
    assert 0 < role.budget_share <= 1


@pytest.mark.parametrize(
    ("outcome", "fact"),
    [
        (Planned(plan="first this"), e.PlanReady(issue=ISSUE, run=2, plan="first this")),
        (Asked(question="which?"), e.QuestionAsked(issue=ISSUE, run=2, question="which?")),
        (SpentBudget(reason="spent"), e.BudgetSpent(issue=ISSUE, run=2, reason="spent")),
        (Halted(reason="no key"), e.RunHalted(issue=ISSUE, run=2, reason="no key")),
        (GaveUp(reason="no idea"), e.RunFailed(issue=ISSUE, run=2, reason="no idea")),
    ],
)
def test_an_outcome_becomes_its_fact(outcome: Outcome, fact: e.RunFact):
    assert create_fact(outcome, ORDER, PLANNER) == fact


@pytest.mark.parametrize(
    ("outcome", "role"),
    [
        (Planned(plan="p"), ENGINEER),
        (Asked(question="q"), ENGINEER),
        (Submitted(summary="s"), PLANNER),
        (Submitted(summary="s"), ENGINEER),
    ],
)
def test_what_a_role_does_not_allow_fails_the_run(outcome: Outcome, role):
    assert isinstance(create_fact(outcome, ORDER, role), e.RunFailed)


def test_an_agent_with_a_share_of_the_budget_stops_there():
    budget = Budget.of_run(ORDER, 0.3, spent_seconds=0.0)
    budget.check_limits(2, 0.5, is_priced=True)
    for steps, usd, limit in ((3, 0.0, "3 steps"), (0, 0.6, "0.6 US dollars")):
        with pytest.raises(RunEnded) as ended:
            budget.check_limits(steps, usd, is_priced=True)
        assert ended.value.outcome == SpentBudget(reason=f"the budget of {limit} is spent")
    assert 89 < budget.seconds_left <= 90

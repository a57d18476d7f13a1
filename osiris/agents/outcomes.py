"""The facts that the outcomes of runs become."""

from typing import assert_never

from osiris.agents.roles import AgentRole
from osiris.core import events as e
from osiris.core.effects import StartRun
from osiris.core.ports.models import Asked, GaveUp, Halted, Outcome, Planned, SpentBudget, Submitted


def is_allowed(outcome: Outcome, role: AgentRole) -> bool:
    """Return whether an agent of a role may end its run so. Every role may fail."""
    return isinstance(outcome, (GaveUp, SpentBudget, Halted, *role.outcomes))


def create_fact(outcome: Outcome, order: StartRun, role: AgentRole) -> e.RunFact:
    """Return the fact of an outcome. An outcome that the role does not allow is a failure, and so
    is submitted work that nobody has imported."""
    issue = order.issue
    run = order.run
    if not is_allowed(outcome, role):
        kind = type(outcome).__name__
        reason = f"the agent ended its run in a way that its role does not allow ({kind})"
        return e.RunFailed(issue=issue, run=run, reason=reason)
    match outcome:
        case Planned(plan=plan):
            return e.PlanReady(issue=issue, run=run, plan=plan)
        case Asked(question=question):
            return e.QuestionAsked(issue=issue, run=run, question=question)
        case SpentBudget(reason=reason):
            return e.BudgetSpent(issue=issue, run=run, reason=reason)
        case Halted(reason=reason):
            return e.RunHalted(issue=issue, run=run, reason=reason)
        case GaveUp(reason=reason):
            return e.RunFailed(issue=issue, run=run, reason=reason)
        case Submitted():
            reason = "the submitted work was not imported"
            return e.RunFailed(issue=issue, run=run, reason=reason)
        case unknown:
            assert_never(unknown)

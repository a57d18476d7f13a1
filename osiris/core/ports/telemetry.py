"""A port for telemetry: counters, histograms and spans. By default nothing is recorded."""

import contextlib
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

current_trace: ContextVar[str] = ContextVar("current_trace", default="")
"""The trace id of the job that runs; "" outside of a job. What the job stores carries it on."""


class Telemetry(Protocol):
    """A recorder of what Osiris does. No method raises, waits, or returns what decides anything."""

    def add_count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add `amount` to a counter."""

    def record_value(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""

    def start_span(self, name: str, trace: str, **labels: str) -> AbstractContextManager[None]:
        """Return a context manager for one piece of work of a trace.

        A trace begins with a delivery or a request; the orders that follow from it, and their
        facts, belong to the same trace.
        """


class NoTelemetry:
    """Telemetry that records nothing."""

    def add_count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        return

    def record_value(self, name: str, value: float, **labels: str) -> None:
        return

    def start_span(self, name: str, trace: str, **labels: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

"""The monitor of the event loop, and what it reports of a stall."""

import asyncio
import logging
import re
import time

import pytest

from osiris.core.sanitize import clean_text
from osiris.loop_monitor import LoopMonitor


def block_in_system_call(seconds: float) -> None:
    """Block as a slow system call does: meanwhile the interpreter's lock is free."""
    time.sleep(seconds)


def block_with_interpreter_lock(seconds: float) -> None:
    """Block as a slow regular expression does: in one call that keeps the interpreter's lock."""
    size = 1000
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        re.search("a*b", "a" * size)
        size *= 2


@pytest.mark.parametrize(
    "stall",
    [block_in_system_call, block_with_interpreter_lock],
    ids=["a system call", "the interpreter's lock"],
)
async def test_a_stall_is_counted_and_named(stall, caplog):
    monitor = LoopMonitor(threshold=0.1)
    with monitor.watch_loop(), caplog.at_level(logging.WARNING, "osiris.loop_monitor"):
        await asyncio.sleep(0.05)
        stall(0.4)
        await asyncio.sleep(0.05)
    assert monitor.stalls >= 1
    assert monitor.longest > 0.1
    assert stall.__name__ in caplog.text
    assert stall.__name__ in monitor.place


async def test_work_beside_the_loop_is_no_stall():
    monitor = LoopMonitor(threshold=0.25)
    with monitor.watch_loop():
        await asyncio.to_thread(lambda: [clean_text("\r\n" * 20_000) for _ in range(50)])
        await asyncio.to_thread(time.sleep, 0.5)
    assert monitor.stalls == 0


async def test_a_change_of_the_count_is_told_once():
    monitor = LoopMonitor(threshold=0.05)
    assert monitor.take_change() == 0
    assert monitor.take_change() is None
    with monitor.watch_loop():
        await asyncio.sleep(0.05)
        block_in_system_call(0.2)
        await asyncio.sleep(0.05)
    assert monitor.take_change() == monitor.stalls > 0
    assert monitor.take_change() is None

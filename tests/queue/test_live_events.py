"""Live events: they reach subscribers in this process and in others."""

import asyncio

from osiris.core.ports.live import AuditEntryAdded, ReplyDelta
from osiris.queue.in_process import LocalLiveEvents
from osiris.queue.redis_events import RedisLiveEvents
from tests.servers import Redis

EVENTS = [ReplyDelta(run="r", seq=1, kind="text", text="Hello 🙂"), AuditEntryAdded(task=7, seq=3)]


async def test_what_one_process_hears_another_reads(redis_server: Redis):
    redis_server.flush()
    publisher = RedisLiveEvents(redis_server.url)
    subscriber = RedisLiveEvents(redis_server.url)
    async with publisher.open_connection(), subscriber.open_connection(), asyncio.timeout(10):
        with subscriber.subscribe() as events:
            while events.empty():  # until the subscription is active
                publisher.publish(EVENTS[0])
                await asyncio.sleep(0.05)
            publisher.publish(EVENTS[1])
            received = [await events.get()]
            while received[-1] != EVENTS[1]:
                received.append(await events.get())
    assert set(received) == set(EVENTS)


async def test_without_redis_nothing_is_heard_and_nothing_breaks(redis_server: Redis):
    redis_server.stop()
    try:
        live_events = RedisLiveEvents(redis_server.url)
        async with live_events.open_connection():
            with live_events.subscribe() as events:
                live_events.publish(EVENTS[0])
                await asyncio.sleep(0.1)
                assert events.empty()
    finally:
        redis_server.start()


async def test_who_reads_too_slowly_loses_the_oldest():
    live_events = LocalLiveEvents()
    with live_events.subscribe() as events:
        for n in range(live_events._MOST + 5):
            live_events.publish(AuditEntryAdded(task=1, seq=n))
        assert (events.qsize(), (await events.get()).seq) == (live_events._MOST, 5)

"""Live events reach those who watch, in this process or in another."""

import asyncio

from osiris.core.ports.live import AuditEntryAdded, ReplyDelta
from osiris.queue.in_process import LocalLiveEvents
from osiris.queue.redis_events import RedisLiveEvents
from tests.servers import Redis

PIECES = [ReplyDelta(run="r", seq=1, kind="text", text="Hello 🙂"), AuditEntryAdded(task=7, seq=3)]


async def test_what_one_process_hears_another_reads(redis_server: Redis):
    redis_server.flush()
    here = RedisLiveEvents(redis_server.url)
    there = RedisLiveEvents(redis_server.url)
    async with here.open_connection(), there.open_connection(), asyncio.timeout(10):
        with there.subscribe() as news:
            while news.empty():  # until it listens
                here.publish(PIECES[0])
                await asyncio.sleep(0.05)
            here.publish(PIECES[1])
            got = [await news.get()]
            while got[-1] != PIECES[1]:
                got.append(await news.get())
    assert set(got) == set(PIECES)


async def test_without_redis_nothing_is_heard_and_nothing_breaks(redis_server: Redis):
    redis_server.stop()
    try:
        journal = RedisLiveEvents(redis_server.url)
        async with journal.open_connection():
            with journal.subscribe() as news:
                journal.publish(PIECES[0])
                await asyncio.sleep(0.1)
                assert news.empty()
    finally:
        redis_server.start()


async def test_who_reads_too_slowly_loses_the_oldest():
    journal = LocalLiveEvents()
    with journal.subscribe() as news:
        for n in range(journal._MOST + 5):
            journal.publish(AuditEntryAdded(task=1, seq=n))
        assert (news.qsize(), (await news.get()).seq) == (journal._MOST, 5)

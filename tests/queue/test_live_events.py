"""Live events reach those who watch, in this process or in another."""

import asyncio

from osiris.core.ports.live import Delta, Noted
from osiris.queue.in_process import LocalJournal
from osiris.queue.redis_events import StreamJournal
from tests.servers import Redis

PIECES = [Delta(run="r", seq=1, kind="text", text="Hello 🙂"), Noted(task=7, seq=3)]


async def test_what_one_process_hears_another_reads(redis_server: Redis):
    redis_server.flush()
    here, there = StreamJournal(redis_server.url), StreamJournal(redis_server.url)
    async with here.connected(), there.connected(), asyncio.timeout(10):
        with there.reading() as news:
            while news.empty():  # until it listens
                here.hear(PIECES[0])
                await asyncio.sleep(0.02)
            here.hear(PIECES[1])
            got = [await news.get()]
            while got[-1] != PIECES[1]:
                got.append(await news.get())
    assert set(got) == set(PIECES)


async def test_without_redis_nothing_is_heard_and_nothing_breaks(redis_server: Redis):
    redis_server.stop()
    try:
        journal = StreamJournal(redis_server.url)
        async with journal.connected():
            with journal.reading() as news:
                journal.hear(PIECES[0])
                await asyncio.sleep(0.1)
                assert news.empty()
    finally:
        redis_server.start()


async def test_who_reads_too_slowly_loses_the_oldest():
    journal = LocalJournal()
    with journal.reading() as news:
        for n in range(journal._MOST + 5):
            journal.hear(Noted(task=1, seq=n))
        assert (news.qsize(), (await news.get()).seq) == (journal._MOST, 5)

"""The hub: from any thread to any event loop, the newest event, and nothing left behind."""

import asyncio
import threading
from collections.abc import AsyncGenerator

from limner.serve import events
from limner.serve.events import Event, Hub
from limner.serve.jobs import State

DEADLINE = 30  # seconds


def event(job: str = "a", state: State = State.RUNNING, **more: object) -> Event:
    return Event(job=job, state=state, **more)  # type: ignore[arg-type]


async def following(watching: AsyncGenerator[Event, None]) -> Event:
    return await asyncio.wait_for(anext(watching), DEADLINE)


def test_everybody_hears_what_another_thread_says() -> None:
    hub = Hub()

    async def listen(began: threading.Barrier) -> list[float]:
        heard = []
        async for now in hub.watch("a"):
            heard.append(now.progress)
            if now.progress == 0.0:
                await asyncio.to_thread(began.wait, DEADLINE)
        return heard

    async def both() -> list[list[float]]:
        hub.publish(event(progress=0.0))
        began = threading.Barrier(3)
        listening = [asyncio.create_task(listen(began)) for _ in range(2)]

        def talk() -> None:
            began.wait(DEADLINE)
            for step in range(1, 50):
                hub.publish(event(progress=step / 100))
            hub.publish(event(state=State.DONE, progress=1.0))

        thread = threading.Thread(target=talk)
        thread.start()
        heard = await asyncio.wait_for(asyncio.gather(*listening), DEADLINE)
        thread.join()
        return list(heard)

    for heard in asyncio.run(both()):
        assert heard == sorted(heard)
        assert (heard[0], heard[-1]) == (0.0, 1.0)
    assert hub.watched() == set()


def test_the_slow_get_the_newest_alone_with_the_previews_that_they_missed() -> None:
    async def slow() -> None:
        hub = Hub()
        hub.publish(event(progress=0.1))
        watching = hub.watch("a")
        assert (await following(watching)).number == 1
        hub.publish(event(progress=0.2, previews=(b"old",)))
        hub.publish(event(progress=0.3, previews=(b"new",)))
        hub.publish(event(progress=0.4))
        now = await following(watching)
        assert (now.progress, now.previews, now.number) == (0.4, (b"new",), 4)
        hub.publish(event(progress=0.5))
        assert (await following(watching)).previews is None  # they have them
        await watching.aclose()
        assert hub.watched() == set()

    asyncio.run(slow())


def test_the_newest_event_is_kept_with_the_newest_previews() -> None:
    hub = Hub()
    assert hub.latest("a") is None
    hub.publish(event(progress=0.2, previews=(b"old",)))
    hub.publish(event(progress=0.4, stage="drawing"))
    kept = hub.latest("a")
    assert kept is not None
    assert (kept.progress, kept.previews, kept.number) == (0.4, (b"old",), 2)
    hub.publish(event(progress=0.4, stage="drawing"))
    assert hub.latest("a") == kept  # nothing new
    hub.publish(event(state=State.QUEUED, position=3), first=True)
    assert hub.latest("a") == kept
    hub.publish(event(state=State.DONE))
    hub.publish(event(progress=0.9))
    kept = hub.latest("a")
    assert kept is not None
    assert (kept.state, kept.previews, kept.number) == (State.DONE, None, 3)


def test_what_has_ended_is_kept_for_a_while_and_what_nobody_watches_is_forgotten() -> None:
    hub = Hub()
    for number in range(events.KEPT + 10):
        hub.publish(event(f"{number}", State.DONE))
    assert hub.latest("9") is None
    assert hub.latest("10") is not None
    for job in ("held", "watched", "neither"):
        hub.publish(event(job))

    async def watch() -> None:
        watching = hub.watch("watched")
        await following(watching)
        hub.forget({"held"})
        assert [hub.latest(job) is None for job in ("held", "watched", "neither")] == [False, False, True]
        await watching.aclose()

    asyncio.run(watch())


def test_closing_lets_everybody_go() -> None:
    hub = Hub()

    async def listen() -> list[Event]:
        return [now async for now in hub.watch("a")]

    async def close() -> list[Event]:
        hub.publish(event())
        listening = [asyncio.create_task(listen()) for _ in range(3)]
        while "a" not in hub.watched():
            await asyncio.sleep(0)
        hub.close()
        hub.publish(event(progress=0.5))
        return [
            one for heard in await asyncio.wait_for(asyncio.gather(*listening), DEADLINE) for one in heard
        ]

    assert {now.progress for now in asyncio.run(close())} <= {0.0}
    assert hub.watched() == set()
    assert asyncio.run(listen()) == [hub.latest("a")]


def test_a_listener_whose_loop_is_closed_is_dropped() -> None:
    hub = Hub()
    loop = asyncio.new_event_loop()
    hub.publish(event(progress=0.1))
    watching = hub.watch("a")
    loop.run_until_complete(following(watching))
    loop.close()
    hub.publish(event(progress=0.2))
    assert hub.watched() == set()

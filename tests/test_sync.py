"""The synchronous face of asynchronous code."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator

import pytest

from ponder import sync


async def double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


def test_run_returns_the_result_and_raises_the_error() -> None:
    assert sync.run(double(21)) == 42

    async def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        sync.run(fail())


def test_one_loop_serves_all_calls() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    assert sync.run(loop()) is sync.run(loop()) is sync.background_loop()


def test_run_works_where_a_loop_is_already_running() -> None:
    async def notebook() -> int:
        return sync.run(double(4))

    assert asyncio.run(notebook()) == 8


def test_run_on_its_own_loop_is_refused_rather_than_stuck() -> None:
    async def nested() -> int:
        return sync.run(double(4))

    with pytest.raises(RuntimeError, match="await"):
        sync.run(nested())


def test_many_threads_may_run_at_once() -> None:
    results: dict[int, int] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: sync.run(double(i))})) for i in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {i: 2 * i for i in range(20)}


def test_iterate_walks_and_closes_an_asynchronous_iterator() -> None:
    closed = []

    async def count() -> AsyncIterator[int]:
        try:
            for i in range(5):
                await asyncio.sleep(0)
                yield i
        finally:
            closed.append(True)

    assert list(sync.iterate(count())) == [0, 1, 2, 3, 4]
    assert closed == [True]
    for i in sync.iterate(count()):
        if i == 2:
            break
    assert closed == [True, True]


def test_gathered_coroutines_give_their_results_in_order() -> None:
    assert sync.run(sync.gather_all(double(i) for i in range(5))) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("how", ["failure", "cancellation"])
def test_no_gathered_coroutine_runs_on_after_a_failure_or_a_cancellation(how) -> None:
    ended: list[int] = []

    async def long(number: int) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)  # cleaning up takes a while, and is waited for
            ended.append(number)

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise KeyError("gone")

    async def both() -> list[int]:
        task = asyncio.create_task(sync.gather_all([long(0), fail() if how == "failure" else long(1), long(2)]))
        await asyncio.sleep(0.005)
        if how == "cancellation":
            task.cancel()
        with pytest.raises(KeyError if how == "failure" else asyncio.CancelledError):
            await task
        return sorted(ended)

    assert sync.run(both()) == ([0, 2] if how == "failure" else [0, 1, 2])


def interrupted(body: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(
        """
        import asyncio, os, signal, threading
        from ponder import sync

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have been told to ignore it

        async def work():
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                await asyncio.sleep(60)
            finally:
                CLEANUP
                print("cleaned up", flush=True)

        try:
            sync.run(work())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(sync.run(asyncio.sleep(0, "still works")))
        """
    ).replace("CLEANUP", body)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)


def test_an_interrupt_cancels_the_coroutine_lets_it_clean_up_and_is_raised_again() -> None:
    done = interrupted("await asyncio.sleep(0.1)")
    assert done.stdout.split("\n")[:3] == ["cleaned up", "interrupted", "still works"], done.stderr
    assert done.returncode == 0


def test_a_second_interrupt_does_not_wait_for_the_clean_up() -> None:
    done = interrupted("threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start(); await asyncio.sleep(10)")
    assert done.stdout.split("\n")[:2] == ["interrupted", "still works"], done.stderr

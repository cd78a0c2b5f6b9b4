"""`backend="asyncio"` where trio is the host: through trio-asyncio, or a private loop where that cannot be had.

Every program runs in a process of its own, because importing trio-asyncio patches asyncio for good.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROLOGUE = """
import asyncio, contextlib, gc, logging, signal, sys, threading, time, warnings
import trio
from repid import *
if LOOP == "private":
    import repid.hosts.loops as loops
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name == "trio_asyncio":
                raise RuntimeError("too new a Python")
    sys.meta_path.insert(0, Blocked())
logging.basicConfig(format="%(message)s", level=logging.ERROR, stream=sys.stdout)
app = Repid(Connection(InMemoryServer()))
router = Router(backend="asyncio")

async def work(*names, expect=None, **options):
    app.include_router(router)
    async with app.magic():
        for name in names:
            await app.send_message_json(channel="default", headers={"topic": name})
        with trio.fail_after(10):
            report = await app.run_worker(messages_limit=expect or len(names), **options)
        return report, await Queue().counts(), [m.failure for m in await Queue().get_messages("dead")]

def main(*names, **options):
    return trio.run(lambda: work(*names, **options))
"""


def run(program: str, loop: str = "trio-asyncio") -> str:
    """What the program prints; it must end well, in reasonable time."""
    code = f"LOOP = {loop!r}\n{PROLOGUE}{textwrap.dedent(program)}\ngc.collect()\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.fixture(
    params=[
        pytest.param(
            "trio-asyncio",
            marks=pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio does not import here"),
        ),
        "private",
    ]
)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "value", ["asyncio.gather(wait(), wait())", "asyncio.create_task(wait())", "loop.create_future()"]
)
def test_a_future_that_nobody_has_awaited_is_a_failure_that_says_so(loop: str, value: str) -> None:
    out = run(
        f"""
        async def wait(): ...

        @router.actor
        async def job():
            loop = asyncio.get_running_loop()
            return {value}

        report, _, [failure] = main("job")
        assert report.dead == 1, report
        print(failure.text)
        """,
        loop,
    )
    assert "returned a future, whose work may still go on when the run has ended" in out


def test_an_actor_uses_asyncio_and_the_verbs_of_its_message(loop: str) -> None:
    run(
        """
        @router.actor
        async def first(message: Message) -> None:
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0.01))
            await message.outbox.send_message_json(channel="default", headers={"topic": "second"})
            await message.send_message_json(channel="default", headers={"topic": "third"})
            await message.ack()

        @router.actor(backend="host")
        async def second() -> None:
            await trio.sleep(0.01)

        @router.actor
        def third() -> None:
            time.sleep(0.01)

        report, counts, dead = main("first", expect=3)
        assert report.succeeded == 3, dead
        """,
        loop,
    )


def test_its_failures_and_results_are_those_of_any_actor(loop: str) -> None:
    run(
        """
        @router.actor
        async def fail():
            await asyncio.sleep(0)
            raise ValueError("no")

        @router.actor
        async def at_once():
            raise KeyError("no")

        @router.actor
        async def leave():
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

        report, counts, dead = main("fail", "at_once", "leave")
        assert sorted(f.type for f in dead) == ["CancelledError", "KeyError", "ValueError"], dead
        """,
        loop,
    )


def test_a_timeout_cancels_the_task_and_an_async_with_is_left_properly(loop: str) -> None:
    out = run(
        """
        class Room:
            async def __aenter__(self):
                await asyncio.sleep(0)
            async def __aexit__(self, *error):
                await asyncio.sleep(0.05)
                print("left", flush=True)

        @router.actor(timeout=0.1)
        async def hang():
            async with Room():
                await asyncio.sleep(3600)

        report, counts, dead = main("hang")
        print(dead[0].type)
        """,
        loop,
    )
    assert [line for line in out.splitlines() if line in {"left", "TimeoutError"}] == ["left", "TimeoutError"]


def test_cancelling_the_worker_leaves_an_async_with_properly_and_releases(loop: str) -> None:
    out = run(
        """
        @contextlib.asynccontextmanager
        async def room():
            try:
                yield
            finally:
                await asyncio.sleep(0.05)
                print("left")

        @router.actor
        async def hang():
            async with room():
                await asyncio.sleep(3600)

        async def cancelled():
            app.include_router(router)
            async with app.magic():
                await app.send_message_json(channel="default", headers={"topic": "hang"})
                with trio.move_on_after(0.3):
                    await app.run_worker()
                counts = await Queue().counts()
                assert (counts.ready, counts.leased) == (1, 0), counts

        started = time.monotonic()
        trio.run(cancelled)
        assert time.monotonic() - started < 5
        """,
        loop,
    )
    assert out == "left\n"


def test_a_worker_may_be_cancelled_while_its_loop_opens(loop: str) -> None:
    run(
        """
        @router.actor
        async def hang():
            await asyncio.sleep(3600)

        async def cancelled():
            app.include_router(router)
            async with app.magic():
                await app.send_message_json(channel="default", headers={"topic": "hang"})
                for steps in range(8):
                    with trio.fail_after(10), trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(app.run_worker)
                            for _ in range(steps):
                                await trio.lowlevel.checkpoint()
                            scope.cancel()
                    assert scope.cancelled_caught
                    counts = await Queue().counts()
                    assert (counts.ready, counts.leased) == (1, 0), counts

        trio.run(cancelled)
        """,
        loop,
    )


def test_a_run_sees_the_context_of_the_worker_and_keeps_its_own(loop: str) -> None:
    run(
        """
        import contextvars
        name = contextvars.ContextVar("name", default="nobody")
        seen = []

        @router.actor
        async def look():
            seen.append(name.get())
            name.set("set by an actor")
            await asyncio.sleep(0)
            assert name.get() == "set by an actor"

        async def named():
            name.set("Ada")
            return await work(*["look"] * 3)

        assert trio.run(named)[0].succeeded == 3
        assert seen == ["Ada"] * 3, seen
        """,
        loop,
    )


def test_the_api_works_in_an_asyncio_actor_and_is_cancelled_by_asyncio(loop: str) -> None:
    run(
        """
        @router.actor
        async def ask():
            handle = await Job("answer").enqueue()
            async with asyncio.timeout(5):
                assert (await handle.wait()).value == 42
            assert [status.state async for status in handle.watch()] == ["success"]
            never = await Job("nobody").enqueue()
            try:
                async with asyncio.timeout(0.01):
                    await never.wait()
            except TimeoutError:
                assert await never.cancel()
            async with app.servers.default.connection() as server:
                await asyncio.gather(*(server.counts("default") for _ in range(5)))

        @router.actor(store_result=True)
        async def answer():
            await asyncio.sleep(0.001)
            return 42

        report, counts, dead = main("ask", expect=2)
        assert report.succeeded == 2, dead
        """,
        loop,
    )


def test_an_exception_in_a_callback_is_logged_and_nothing_else(loop: str) -> None:
    out = run(
        """
        def broken():
            raise ValueError("in a callback")

        @router.actor
        async def call():
            asyncio.get_running_loop().call_soon(broken)
            await asyncio.sleep(0.02)

        report, counts, dead = main("call", "call")
        assert report.succeeded == 2
        """,
        loop,
    )
    assert out.count("ValueError: in a callback") == 2


def test_a_task_exception_nobody_retrieves_is_logged_and_nothing_else(loop: str) -> None:
    out = run(
        """
        async def fail():
            raise ValueError("in a task")

        @router.actor
        async def spawn():
            asyncio.create_task(fail())
            await asyncio.sleep(0.02)
            gc.collect()
            await asyncio.sleep(0.02)

        report, counts, dead = main("spawn", "spawn")
        assert report.succeeded == 2
        """,
        loop,
    )
    assert out.count("ValueError: in a task") == 2


def test_timers_and_tasks_that_are_left_over_do_not_hold_up_the_end(loop: str) -> None:
    run(
        """
        @router.actor
        async def leave_things():
            timer = asyncio.get_running_loop().call_later(3600, print)
            timer.cancel()
            asyncio.get_running_loop().call_later(3600, print)
            asyncio.create_task(asyncio.sleep(3600))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.sleep(3600), 0.01)

        started = time.monotonic()
        report, counts, dead = main("leave_things")
        assert report.succeeded == 1
        assert time.monotonic() - started < 5
        """,
        loop,
    )


def test_an_order_to_exit_is_the_failure_of_its_job(loop: str) -> None:
    run(
        """
        @router.actor
        async def leave():
            await asyncio.sleep(0)
            raise SystemExit(3)

        main("leave")

        async def look():
            async with app.magic():
                assert (await Queue().counts()).dead == 1
        trio.run(look)
        """,
        loop,
    )


def test_middlewares_run_on_the_host(loop: str) -> None:
    run(
        """
        async def around(call_next, message, actor):
            await trio.sleep(0.001)
            return await call_next(message, actor)

        @router.actor(middlewares=[around])
        async def inside():
            await asyncio.sleep(0.001)

        report, counts, dead = main("inside")
        assert report.succeeded == 1, dead
        """,
        loop,
    )


def test_dependencies_run_on_the_loop_of_their_actor_and_under_the_middlewares_of_the_host(loop: str) -> None:
    run(
        """
        from typing import Annotated

        async def around(call_next, message, actor):
            await trio.sleep(0.001)
            return await call_next(message, actor)

        tasks = []

        async def outer(message: Message):
            tasks.append(asyncio.current_task())
            await asyncio.sleep(0.001)
            yield "a word"
            await asyncio.sleep(0.001)
            await message.ack()
            tasks.append(asyncio.current_task())

        async def job(word: Annotated[str, Depends(outer)]):
            assert word == "a word"
            tasks.append(asyncio.current_task())

        router.actor(name="alone")(job)
        router.actor(name="surrounded", middlewares=[around])(job)
        report, counts, dead = main("alone", "surrounded", tasks_limit=1)
        assert report.succeeded == 2, dead
        assert len(tasks) == 6 and len(set(tasks[:3])) == len(set(tasks[3:])) == 1, tasks
        """,
        loop,
    )


def test_many_runs_at_once(loop: str) -> None:
    run(
        """
        @router.actor
        async def sleep(message: Message):
            await asyncio.sleep(0.05)
            await message.ack()

        started = time.monotonic()
        report, counts, dead = main(*["sleep"] * 100)
        assert report.succeeded == 100
        assert time.monotonic() - started < 4
        """,
        loop,
    )


def test_asyncio_is_patched_only_where_such_an_actor_exists() -> None:
    run(
        """
        class Sentinel:
            pass
        original = asyncio.new_event_loop, asyncio._get_running_loop, asyncio.get_event_loop_policy()

        @router.actor(backend="host")
        async def hosted():
            await trio.sleep(0)

        @router.actor
        def threaded():
            pass

        assert main("hosted", "threaded")[0].succeeded == 2
        assert "trio_asyncio" not in sys.modules
        assert original == (asyncio.new_event_loop, asyncio._get_running_loop, asyncio.get_event_loop_policy())
        """
    )


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no extra is needed")
def test_without_the_extra_the_error_names_it() -> None:
    run(
        """
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name == "trio_asyncio":
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Missing())

        @router.actor
        async def hosted(): ...

        try:
            main("hosted")
        except MissingExtra as error:
            assert "repid-trio[asyncio]" in str(error) and "backend" in str(error)
        else:
            raise AssertionError
        """
    )


def test_a_backend_that_does_not_exist_is_refused_by_name() -> None:
    from repid import ConfigurationError, Router

    with pytest.raises(ConfigurationError, match="backend of actor 'job'"):
        Router().actor(name="job", backend="gevent")(print)  # type: ignore[call-overload]


@pytest.mark.parametrize("how", ["sleep", "scope", "nursery", "children"])
def test_a_call_of_trio_fails_alone(loop: str, how: str) -> None:
    run(
        f"""
        how = {how!r}

        async def opens_a_scope():
            with trio.move_on_after(60):
                await asyncio.sleep(0.005)

        @router.actor
        async def wrong():
            if how == "sleep":
                await trio.sleep(0.001)
            elif how == "scope":
                await opens_a_scope()
            elif how == "nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep, 0.001)
                    await asyncio.sleep(0.005)
            else:
                await asyncio.gather(opens_a_scope(), opens_a_scope())

        @router.actor
        async def innocent():
            await asyncio.sleep(0.02)

        report, counts, dead = main("wrong", "innocent", "wrong", "innocent")
        assert (report.succeeded, report.dead) == (2, 2), report
        assert all('backend="trio"' in failure.text for failure in dead), dead
        """,
        loop,
    )


def test_an_actor_that_blocks_the_loop_in_a_later_step_is_named(loop: str) -> None:
    said = run(
        """
        @router.actor(timeout=0.3)
        async def blocks() -> None:
            await asyncio.sleep(0.01)
            time.sleep(0.4)

        @router.actor
        async def fine() -> None:
            await asyncio.sleep(0.01)
            time.sleep(0.1)

        logging.getLogger("repid").setLevel(logging.WARNING)
        main("blocks", "fine")
        """,
        loop,
    )
    named = [line for line in said.splitlines() if "blocked the event loop" in line]
    assert len(named) == 1, said
    assert "actor 'blocks' (message" in named[0]
    assert "past its timeout of 0.3 s" in named[0]


def test_an_order_to_exit_in_a_task_that_an_actor_started_is_the_failure_of_its_job_alone(loop: str) -> None:
    run(
        """
        async def child(order):
            await asyncio.sleep(0)
            raise order

        @router.actor
        async def leaves() -> None:
            await asyncio.create_task(child(SystemExit(3)))

        @router.actor
        async def interrupts() -> None:
            await asyncio.create_task(child(KeyboardInterrupt()))

        @router.actor
        async def innocent() -> None:
            await asyncio.sleep(0.05)

        logging.disable(logging.CRITICAL)
        report, counts, dead = main("innocent", "leaves", "interrupts")
        assert (report.succeeded, report.failed) == (1, 2), report
        said = "\\n".join(failure.text for failure in dead)
        for text in ("sys.exit(3) was called", "KeyboardInterrupt was raised"):
            assert text + " in a task that an actor had started" in said, said
        """,
        loop,
    )

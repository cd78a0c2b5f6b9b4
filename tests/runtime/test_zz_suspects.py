import logging, pytest, trio, time
from datetime import timedelta
from repid import *
from repid.actors import *
from aids import *

def go(build, n, seed, **opts):
    pass

async def test_s1_exit_loses_batch(app, server):
    r = Router()
    @r.actor
    async def bad(): raise SystemExit(3)
    app.include_router(r)
    for _ in range(5): await send(app, "bad")
    with pytest.raises(BaseException) as e: await app.run_worker()
    print(repr(e.value))
    assert await server.counts("default") == Counts(ready=5)

async def test_s2_claimed_leak(app, server):
    pass

@pytest.mark.parametrize("seed", range(30))
def test_s3_burst_race(seed):
    async def main():
        seed_scheduler(seed)
        app = Repid(); server = InMemoryServer(); app.servers.register_server("d", server)
        r = Router()
        @r.actor
        async def first(m: Message):
            await trio.lowlevel.checkpoint()
            await m.outbox.send_message(channel="default", payload=b"", headers={"topic":"second"})
        @r.actor
        async def second(): 
            await trio.lowlevel.checkpoint()
        app.include_router(r)
        async with app.magic():
            await send(app,"first")
            rep = await app.run_worker(burst=True)
            assert (await server.counts("default")) == Counts()
    run_virtual(main)

async def test_s4_idle_ttl(app, server):
    r = Router(); ran=[]
    @r.actor
    async def f(): ran.append(1)
    app.include_router(r)
    async with trio.open_nursery() as n:
        h = await n.start(app.run_worker)
        await trio.sleep(100)
        await app.send_message_json(channel="default", headers={"topic":"f"}, ttl=30)
        await trio.sleep(1)
        h.stop()
    assert (ran, await server.counts("default")) == ([1], Counts())

async def test_s4b_idle_then_unavailable(app, server):
    r = Router(); ran=[]
    @r.actor
    async def f(): 
        ran.append(1); await trio.sleep(20); ran.append(2)
    app.include_router(r)
    async with trio.open_nursery() as n:
        h = await n.start(app.run_worker)
        await trio.sleep(100)
        server.failures["extend"] = 2
        await send(app,"f")
        await trio.sleep(30)
        h.stop()
    assert ran == [1,2]

async def test_s5_parked_ttl(app, server):
    r = Router(); ran=[]
    @r.actor(concurrency=1, routing_strategy=catch_all_routing_strategy)
    async def f():
        ran.append(trio.current_time()); await trio.sleep(100)
    app.include_router(r)
    await send(app,"f")
    await app.send_message_json(channel="default", headers={"topic":"f"}, ttl=30)
    await app.run_worker(burst=True)
    assert len(ran) == 1
    assert (await server.counts("default")) == Counts(dead=1)

@pytest.mark.parametrize("seed", range(40))
def test_s6_extend_vs_settle(seed):
    async def main():
        seed_scheduler(seed)
        app = Repid(); server = InMemoryServer(); app.servers.register_server("d", server)
        r = Router()
        @r.actor
        async def f(): await trio.sleep_until(t0+15)
        app.include_router(r)
        async with app.magic():
            for _ in range(5): await send(app,"f")
            t0 = trio.current_time()
            rep = await app.run_worker(burst=True)
            assert rep == Report(processed=5, succeeded=5)
    run_virtual(main)

@pytest.mark.parametrize("ret", [[], {}, 5])
async def test_s7_on_error_unhashable(app, server, ret):
    r = Router()
    @r.actor(on_error=lambda e: ret)
    async def f(): raise ValueError
    app.include_router(r); await send(app,"f")
    rep = await app.run_worker(burst=True)
    assert rep.dead == 1

class Bad(Exception):
    def __str__(self): raise ValueError("no")
class BadRepr:
    def __repr__(self): raise ValueError("no")
async def test_s8_bad_str(app, server):
    r = Router()
    @r.actor
    async def f(): raise Bad
    app.include_router(r); await send(app,"f")
    assert (await app.run_worker(burst=True)).dead == 1
async def test_s9_bad_repr(app, server):
    r = Router()
    @r.actor(confirmation_mode="manual_explicit")
    async def f(): return BadRepr()
    app.include_router(r); await send(app,"f")
    assert (await app.run_worker(burst=True)).dead == 1
async def test_s9b_bad_repr(app, server):
    r = Router()
    @r.actor(on_error=lambda e: BadRepr())
    async def f(): raise ValueError
    app.include_router(r); await send(app,"f")
    assert (await app.run_worker(burst=True)).dead == 1

def test_s10_types():
    for f in (lambda: Queue([]), lambda: Job({}), lambda: Router(middlewares=5), lambda: Worker(handle_signals=5)):
        with pytest.raises(ConfigurationError): f()
async def test_s10b(app):
    for kw in ({"headers":5},{"server_specific_parameters":5},{"server_name":[]}):
        with pytest.raises(ConfigurationError): await app.send_message(channel="c", payload=b"", **kw)

async def test_s11_magic_declares(server, autojump_clock):
    app = Repid(); app.servers.register_server("d", server)
    r = Router(channel="mine")
    @r.actor
    async def f(): ...
    app.include_router(r)
    async with app.magic():
        await Job("f", "mine").enqueue()

@pytest.mark.parametrize("k", range(30))
async def test_s12_thread_never_started(app, server, k):
    r = Router(); ran=[]
    @r.actor
    def f(): ran.append(1)
    app.include_router(r); await send(app,"f")
    with trio.CancelScope() as s:
        async with trio.open_nursery() as n:
            n.start_soon(app.run_worker)
            for _ in range(k): await trio.lowlevel.checkpoint()
            s.cancel()
    c = await server.counts("default")
    if not ran: assert c == Counts(ready=1)

async def test_s13_order_tasks1(app, server):
    r = Router(); order=[]
    @r.actor
    async def f(i: int):
        order.append(i)
        if i >= 30: await trio.sleep(1)
    app.include_router(r)
    for i in range(60): await send(app,"f", i=i)
    await app.run_worker(burst=True, tasks_limit=1)
    assert order == list(range(60))

async def test_s14_stop_inside_actor(app, server):
    r = Router(); ran=[]
    @r.actor
    async def f():
        ran.append(1); h.stop()
    app.include_router(r)
    for i in range(60): await send(app,"f")
    async with trio.open_nursery() as n:
        h = await n.start(app.run_worker)
    assert len(ran) == 1

async def test_s15_group_with_exit(app, server):
    r = Router()
    @r.actor(timeout=1)
    async def f():
        async def a():
            try: await trio.sleep(10)
            finally: raise SystemExit(4)
        async with trio.open_nursery() as n:
            n.start_soon(a); n.start_soon(trio.sleep,10)
    app.include_router(r); await send(app,"f")
    with pytest.raises(BaseException):
        await app.run_worker(burst=True)

async def test_s16_claimed_leak(app, server):
    server2 = server
    r = Router(); ran=[]
    @r.actor
    async def quick(): ...
    @r.actor(concurrency=2)
    async def lim(): 
        ran.append(trio.current_time()); 
    @r.actor
    async def slow(): await trio.sleep(200)
    app.include_router(r)
    async with trio.open_nursery() as n:
        h = await n.start(partial(app.run_worker, tasks_limit=2))
        for i in range(20): await send(app, "quick")
        for i in range(2): await send(app, "slow")
        for i in range(4): await send(app, "lim")
        await trio.sleep(10)
        print(await server.counts("default"))
        # lose the held ones
        server.failures["extend"] = 5
        await trio.sleep(500)
        print(await server.counts("default"), ran)
        h.stop()
from functools import partial

"""Timeouts, signals, threads and asyncio."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tbus
from conftest import A, B, C, write_channels


def test_timeouts(pair):
    sender, receiver = pair
    begun = time.monotonic()
    with pytest.raises(tbus.Empty):
        receiver.recv(timeout=0.2)
    assert receiver.wait(timeout=0.1) is False
    assert 0.3 <= time.monotonic() - begun
    sender.send(b"x")
    assert receiver.wait() is True and receiver.wait(0) is True
    sender.send_many([bytes(1000)] * 1000)
    assert sender.wait(1000, timeout=0.1) is False
    with pytest.raises(tbus.Full):
        sender.send(bytes(1000), timeout=0.1)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError):
            receiver.recv(timeout=wrong)
    assert receiver.recv(timeout=float("inf")) == b"x"


def test_other_threads_run_while_one_waits(pair):
    sender, receiver = pair
    got = []
    thread = threading.Thread(target=lambda: got.append(receiver.recv()))
    thread.start()
    time.sleep(0.05)
    sender.send(b"from the main thread")
    thread.join(10)
    assert got == [b"from the main thread"]


def test_a_full_ring_drained_by_another_thread(pair):
    sender, receiver = pair
    got = []
    thread = threading.Thread(target=lambda: got.extend(receiver.recv() for _ in range(2000)))
    thread.start()
    for i in range(2000):
        sender.send(b"%d" % i + bytes(200), timeout=30)
    thread.join(30)
    assert [message.rstrip(b"\0") for message in got] == [b"%d" % i for i in range(2000)]


def test_two_threads_on_one_receiver(pair):
    sender, receiver = pair
    got = []
    threads = [threading.Thread(target=lambda: got.extend(receiver.recv() for _ in range(500))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(1000):
        sender.send(b"%d" % i, timeout=30)
    for thread in threads:
        thread.join(30)
    assert sorted(map(int, got)) == list(range(1000))


def test_a_call_takes_its_turn(pair):
    """Another thread sleeps with the handle, without the interpreter: the call stands behind it, for a while."""
    sender = pair[0]
    sender.send_many([bytes(1000)] * 40)
    thread = threading.Thread(target=sender.wait, args=(30000, 0.6))  # there is room for less
    thread.start()
    times = []
    while thread.is_alive():
        begun = time.monotonic()
        assert sender.try_send(b"x")
        times.append(time.monotonic() - begun)
        time.sleep(0.01)
    assert 0.02 < max(times) < 0.5


def test_closing_ends_a_wait(pair):
    errors = []

    def wait():
        try:
            pair[1].recv()
        except tbus.HandleClosed as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    pair[1].close()
    thread.join(10)
    assert len(errors) == 1


def test_a_second_thread_that_waits(pair):
    """It has its own timeout, though others sleep for ever, a slice of time each."""
    receiver = pair[1]

    def wait():
        with pytest.raises(tbus.HandleClosed):
            receiver.recv()

    threads = [threading.Thread(target=wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    for _ in range(3):
        begun = time.monotonic()
        assert receiver.wait(timeout=0.3) is False
        assert 0.3 <= time.monotonic() - begun < 1.5
    receiver.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


class Alarm(Exception):
    pass


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Alarm])
def test_a_signal_while_many_are_sent(pair, raised):
    """Not lost, though some of them were sent before."""

    def handle(*_):
        raise raised

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(raised):
            pair[0].send_many([bytes(1000)] * 1000, timeout=5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert pair[1].recv(0) == bytes(1000)


@pytest.mark.parametrize("wait", ["recv", "wait", "peek", "send"])
def test_keyboard_interrupt(pair, wait):
    sender, receiver = pair
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        if wait == "send":
            while True:
                sender.send(bytes(1000), timeout=None)
        getattr(receiver, wait)()
    assert time.monotonic() - begun < 5


def test_asyncio(pair):
    sender, receiver = pair

    async def main():
        async def later():
            await asyncio.sleep(0.05)
            sender.send(b"later")

        task = asyncio.create_task(later())
        assert await asyncio.wait_for(receiver.arecv(), 10) == b"later"
        await task
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(receiver.arecv(), 0.03)
        sender.send(b"not lost")
        assert await receiver.arecv() == b"not lost"
        # Two tasks on one receiver.
        tasks = [asyncio.create_task(receiver.arecv()) for _ in range(2)]
        await asyncio.sleep(0.05)
        sender.send_many([b"1", b"2"])
        assert sorted(await asyncio.wait_for(asyncio.gather(*tasks), 10)) == [b"1", b"2"]

    asyncio.run(main())


def test_asyncio_both_ways_under_load(pair):
    sender, receiver = pair
    count = 5000

    async def main():
        async def send():
            for i in range(count):
                await sender.asend(b"%d" % i + bytes(100))

        task = asyncio.create_task(send())
        got = 0
        async for message in receiver:
            assert int(message.rstrip(b"\0")) == got
            got += 1
            if got == count:
                break
        await task

    asyncio.run(asyncio.wait_for(main(), 60))


def thread_of(name):
    """Status of the one thread with this name, which it gives itself a little after it was started."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for thread in Path("/proc/self/task").iterdir():
            if (thread / "comm").read_text().strip() == name:
                return dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines())
    raise AssertionError(f"no thread {name}")


def test_an_event_loop_that_waits_is_idle(pair):
    """A thread watches the ring, but wakes seldom, and keeps no call waiting."""
    sender, receiver = pair

    async def main():
        task = asyncio.create_task(receiver.arecv())
        await asyncio.sleep(0.2)
        before = thread_of("tbus-ready")
        times = []
        for _ in range(51):
            begun = time.monotonic()
            assert receiver.try_recv() is None
            times.append(time.monotonic() - begun)
            await asyncio.sleep(0.02)
        after = thread_of("tbus-ready")
        switches = "voluntary_ctxt_switches"
        assert int(after[switches]) - int(before[switches]) < 30  # in a second and a bit
        assert sorted(times)[25] < 0.004  # a slice of sleep with the lock would be longer
        sender.send(b"x")
        assert await asyncio.wait_for(task, 10) == b"x"

    asyncio.run(main())


def test_the_threads_that_watch_take_no_signals(pair):
    sender, receiver = pair
    sender.send_many([bytes(1000)] * 1000)
    room = sender._ticket(1000)
    receiver.recv_many(1000)
    message = receiver._ticket(0)
    for name in ("tbus-watch", "tbus-ready"):
        status = thread_of(name)
        assert int(status["SigBlk"], 16) & 1 << signal.SIGINT - 1
    room.close()
    message.close()


def test_asyncio_of_all_channels(bus, directory):
    async def main():
        with bus.bind(B).receiver() as receiver, bus.bind(C).sender(B) as sender:
            task = asyncio.create_task(receiver.arecv())
            await asyncio.sleep(0.05)
            sender.send(b"c")
            assert await asyncio.wait_for(task, 10) == b"c"
            task = asyncio.create_task(receiver.arecv())
            await asyncio.sleep(0.05)
            write_channels(directory, [(A, B), (C, B), ("0.0.7.1", B)])
            with bus.bind("0.0.7.1").sender(B) as added:
                added.send(b"new")
                assert await asyncio.wait_for(task, 10) == b"new"

    asyncio.run(main())


def test_asyncio_when_the_channel_is_deleted(bus, directory):
    async def main():
        with bus.bind(B).receiver(C) as receiver:
            tasks = [asyncio.create_task(receiver.arecv()) for _ in range(2)]
            await asyncio.sleep(0.05)
            write_channels(directory, [(A, B)])
            for task in tasks:
                with pytest.raises(tbus.Closed):
                    await asyncio.wait_for(task, 10)

    asyncio.run(main())


def test_asyncio_in_two_loops(pair):
    """Each with a thread and tasks of its own, on one receiver."""
    sender, receiver = pair
    got = []

    async def take():
        for _ in range(300):
            got.append(int(await receiver.arecv()))

    threads = [threading.Thread(target=lambda: asyncio.run(take()), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(600):
        sender.send(b"%d" % i, timeout=30)
        if i % 10 == 0:
            time.sleep(0.001)
    for thread in threads:
        thread.join(30)
    assert sorted(got) == list(range(600))


def test_asyncio_when_closed(pair):
    async def main():
        task = asyncio.create_task(pair[1].arecv())
        await asyncio.sleep(0.05)
        pair[1].close()
        with pytest.raises(tbus.HandleClosed):
            await asyncio.wait_for(task, 10)
        with pytest.raises(tbus.HandleClosed):
            await pair[1].ready()

    asyncio.run(main())


def test_descriptors_do_not_pile_up(pair):
    async def main():
        for _ in range(50):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pair[1].arecv(), 0.001)

    asyncio.run(main())
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) <= before

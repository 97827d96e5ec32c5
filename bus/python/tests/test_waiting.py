"""Timeouts, signals, threads and asyncio."""

import asyncio
import os
import signal
import threading
import time

import pytest
import tbus


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

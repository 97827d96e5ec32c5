"""Other processes: Python's and Rust's, killed ones and forked ones."""

import os
import signal
import subprocess
import sys

import pytest
import tbus
from conftest import A, B, BIN, KEY, SIZE

RECEIVE = f"""
import sys, tbus
receiver = tbus.Bus({KEY}).bind("{B}").receiver("{A}")
print("ready", flush=True)
for _ in range(int(sys.argv[1])):
    print(receiver.recv(timeout=30).decode(), flush=True)
"""


COUNT = f"""
import sys, tbus
receiver = tbus.Bus({KEY}).bind("{B}").receiver("{A}")
count = int(sys.argv[1])
for i in range(count):
    assert receiver.recv(timeout=30) == b"%d" % i
print(count)
"""


def python(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_two_processes(bus):
    count = 50000
    with python(COUNT, count) as child:
        sender = bus.bind(A).sender(B)
        for i in range(count):
            sender.send(b"%d" % i, timeout=30)
        output, _ = child.communicate(timeout=60)
    assert (output, child.returncode) == (f"{count}\n", 0)


def test_many_come_to_an_end_though_more_follow(bus):
    """Another process sends all the time: a call takes no more than a ring's worth."""
    code = f"""
import sys, tbus
sender = tbus.Bus({KEY}).bind("{A}").sender("{B}")
batch = [bytes(16)] * 256
while True:
    sender.send_many(batch, None)
"""
    with bus.bind(B).receiver(A) as receiver, python(code) as child:
        # A message takes 24 bytes of its ring at least.
        lengths = [len(receiver.recv_many(10**9, timeout=10)) for _ in range(300)]
        child.kill()
    assert 0 < max(lengths) <= SIZE // 24 + 1


def test_a_receiver_that_is_killed(bus):
    """Nothing is lost, and at most the message that was being received is seen twice."""
    sender = bus.bind(A).sender(B)
    seen, next_ = [], 0
    for _ in range(5):
        with python(RECEIVE, 10**9) as child:
            assert child.stdout.readline() == "ready\n"
            for _ in range(200):
                sender.send(b"%d" % next_, timeout=30)
                next_ += 1
            for _ in range(50):
                seen.append(int(child.stdout.readline()))
            child.send_signal(signal.SIGKILL)
            seen.extend(int(line) for line in child.stdout if line.endswith("\n"))
        # What it had received and not printed is what it took with it: here that is one message at most.
        with bus.bind(B).receiver(A) as receiver:
            first = receiver.sequence
            assert first - len(seen) in (0, 1)
            seen.extend(range(len(seen), first))
            left = [int(message) for message in receiver.recv_many(10**6, timeout=0)]
            seen.extend(left)
    assert seen == list(range(next_))


def test_a_peeked_message_survives_a_kill(bus):
    bus.bind(A).sender(B).send(b"precious")
    peek = f"""
import os, signal, tbus
message = tbus.Bus({KEY}).bind("{B}").receiver("{A}").peek()
assert message.data == b"precious"
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", peek]).returncode == -signal.SIGKILL
    assert bus.bind(B).receiver(A).recv(timeout=1) == b"precious"


def test_a_peer_in_rust(bus):
    """The example echo sends back what it gets, reversed."""
    count = 5000
    with subprocess.Popen([BIN / "examples" / "echo", str(KEY), B, A, str(count)]) as echo:
        with bus.bind(A) as endpoint, endpoint.sender(B) as sender, endpoint.receiver(B) as receiver:
            for i in range(count):
                sender.send(b"message %d" % i, timeout=30)
                assert receiver.recv(timeout=30) == (b"message %d" % i)[::-1]
        assert echo.wait(30) == 0


def refused(call):
    try:
        call()
    except tbus.Forked:
        return True
    return False


def test_a_child_cannot_use_what_its_parent_has(bus):
    endpoint = bus.bind(A)
    sender, receiver = endpoint.sender(B), bus.bind(B).receiver(A)
    sender.send(b"parent's")
    message = receiver.peek()
    view = memoryview(message)
    calls = [
        lambda: sender.send(b"x"), lambda: sender.try_send(b"x"), lambda: sender.send_many([b"x"]), sender.wait,
        sender.close, lambda: sender.max_len, receiver.recv, receiver.try_recv, receiver.peek, receiver.wait,
        receiver.close, message.release, message.tobytes, lambda: memoryview(message), lambda: bus.bind(A),
        lambda: endpoint.sender(B), lambda: next(receiver), lambda: sender._ticket(0), lambda: receiver._ticket(0),
    ]  # fmt: skip
    child = os.fork()
    if child == 0:
        wrong = 100  # if it does not come to its end
        try:
            allowed = [call for call in calls if not refused(call)]
            empty = bytes(view) == bytes(len(view))
            view.release()
            # Attached anew, it may use what its parent does not hold.
            tbus.Bus(KEY).bind(B).sender(A).send(b"from the child")
            wrong = len(allowed) + (not empty)
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert view == b"parent's"
    view.release()
    message.release()
    assert bus.bind(A).receiver(B).recv(timeout=5) == b"from the child"
    sender.send(b"still mine")
    assert receiver.recv() == b"still mine"


def test_a_child_of_a_process_that_waits(bus):
    """A fork while another thread holds the handle's lock: the child gets its error, and does not hang."""
    code = f"""
import os, threading, time, tbus, faulthandler
faulthandler.dump_traceback_later(20, exit=True)
receiver = tbus.Bus({KEY}).bind("{B}").receiver("{A}")
threading.Thread(target=receiver.wait, args=(1.5,)).start()
time.sleep(0.3)
child = os.fork()
if child == 0:
    try:
        receiver.try_recv()
    except tbus.Forked:
        del receiver
        os._exit(0)
    os._exit(1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0


def test_exit_while_a_thread_watches(bus):
    code = f"""
import asyncio, tbus
receiver = tbus.Bus({KEY}).bind("{B}").receiver("{A}")
async def main():
    try:
        await asyncio.wait_for(receiver.arecv(), 0.05)
    except asyncio.TimeoutError:
        pass
asyncio.run(main())
ticket = receiver._ticket(0)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    bus.bind(B).receiver(A).close()

"""Wrong use is an exception, never a crash."""

import pickle
import resource

import pytest
import tbus
from conftest import A, B


def test_wrong_types(pair, bus):
    sender, receiver = pair
    for wrong in ("text", 5, None, object(), [b"x"]):
        with pytest.raises(TypeError):
            sender.send(wrong)
        with pytest.raises(TypeError):
            sender.try_send(wrong)
        with pytest.raises(TypeError):
            sender.send_many([b"first", wrong])
        assert receiver.try_recv() is None
    for wrong in (5, None, iter([b"x"])):
        with pytest.raises(TypeError):
            sender.send_many(wrong)
    with pytest.raises(BufferError):
        sender.send(memoryview(b"0123456789")[::2])
    for call in (receiver.recv, receiver.peek, receiver.wait):
        with pytest.raises(TypeError):
            call(timeout="soon")
    with pytest.raises(OverflowError):
        receiver.recv_many(-1)
    for wrong in (None, 1.5, b"1000"):
        with pytest.raises(TypeError):
            tbus.Bus(wrong)
        with pytest.raises(TypeError):
            bus.bind(wrong)
    for kind in (tbus.Endpoint, tbus.Sender, tbus.Receiver):
        with pytest.raises(TypeError):
            kind()
    for thing in (bus, sender, receiver):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_a_sequence_that_misbehaves(pair):
    class Odd(list):
        def __getitem__(self, index):
            if index == 3:
                raise RuntimeError("no more")
            return b"x"

    with pytest.raises(RuntimeError):
        pair[0].send_many(Odd([b"x"] * 5))

    class Shrinks(list):
        def __len__(self):
            return 100

    with pytest.raises(IndexError):
        pair[0].send_many(Shrinks())


def test_a_sequence_that_shrinks(pair):
    class Shrinks(list):
        """One element fewer each time that it is asked."""

        def __len__(self):
            self.asked = getattr(self, "asked", 0) + 1
            return max(3 - self.asked, 0)

    assert pair[0].send_many(Shrinks([b"x"] * 5)) == 2


def test_interrupted_in_a_sequence(pair):
    class Interrupted(list):
        def __getitem__(self, index):
            if index == 300:
                raise KeyboardInterrupt
            return b"x"

    with pytest.raises(KeyboardInterrupt):
        pair[0].send_many(Interrupted([b"x"] * 400))


def test_after_closing(pair, bus):
    sender, receiver = pair
    sender.send(b"x")
    message = receiver.peek()
    endpoint = bus.bind(A)
    for thing in (sender, receiver, endpoint, bus):
        thing.close()
        thing.close()
    calls = [
        lambda: sender.send(b"x"), lambda: sender.try_send(b"x"), lambda: sender.send_many([b"x"]), sender.wait,
        lambda: sender.max_len, lambda: sender.sequence, sender.set_extensions, receiver.recv, receiver.recv_from,
        receiver.try_recv, lambda: receiver.recv_many(1), receiver.peek, receiver.wait, lambda: receiver.sequence,
        lambda: next(receiver), message.release, message.tobytes, lambda: memoryview(message), lambda: message.data,
        lambda: bus.bind(A), lambda: endpoint.sender(B), lambda: endpoint.receiver(), lambda: endpoint.peers,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(tbus.HandleClosed):
            call()
    with pytest.raises(ValueError):  # as files say it
        receiver.recv()


def test_a_message_in_a_bytearray_that_is_resized(pair):
    data = bytearray(b"x" * 100)
    pair[0].send(data)
    data.extend(b"y")  # not exported any more
    assert len(pair[1].recv()) == 100


def test_memory_does_not_grow(pair):
    sender, receiver = pair

    def work(count):
        for i in range(count):
            sender.send(b"x" * 64)
            receiver.recv()
            sender.send(b"y" * 64)
            with receiver.peek() as message:
                message.data
            receiver.try_recv()
            sender.send_many([b"1", b"2"])
            receiver.recv_many(2)
            try:
                receiver.recv(timeout=0)
            except tbus.Empty:
                pass

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    work(5000)
    before = resident()
    work(100_000)
    assert resident() - before < 2_000_000  # 20 bytes a message would show


def test_all_errors_are_one_family():
    for name in tbus.__all__:
        kind = getattr(tbus, name)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            assert issubclass(kind, tbus.Error) and kind.__module__ == "tbus" and kind.__doc__
        elif isinstance(kind, type):
            public = [method for method in vars(kind) if not method.startswith("_")]
            undocumented = [method for method in public if not getattr(kind, method).__doc__]
            assert kind.__doc__ and not undocumented

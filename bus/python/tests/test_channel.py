"""What is sent is received: all kinds of buffers, lengths and calls."""

import array
import ctypes
import inspect
import mmap

import numpy
import pytest
import tbus
from conftest import A, B, C, KEY, SIZE, write_channels


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"",
        bytearray(b"bytes"),
        memoryview(b"0123456789")[2:5],
        array.array("d", [1.5, 2.5]),
        numpy.arange(12, dtype=numpy.int32).reshape(3, 4),
        (ctypes.c_char * 4)(*b"abcd"),
        bytes(SIZE // 2),
    ],
    ids=lambda data: type(data).__name__,
)
def test_any_buffer(pair, data):
    sender, receiver = pair
    sender.send(data)
    assert receiver.recv(timeout=0) == memoryview(data).tobytes()


def test_arguments_in_every_form(pair):
    """The usual ones are looked at in another place than the rest."""
    sender, receiver = pair
    soon = {"timeout": 0.5}
    sends = [
        lambda: sender.send(b"x"), lambda: sender.send(b"x", None), lambda: sender.send(b"x", 1), lambda: sender.send(b"x", 0.5),
        lambda: sender.send(b"x", timeout=True), lambda: sender.send(timeout=0, data=b"x"), lambda: sender.send(data=b"x"),
        lambda: sender.send(b"x", **soon), lambda: sender.send(bytearray(b"x"), numpy.float64(0.5)),
        lambda: sender.try_send(data=b"x") or None, lambda: tbus.Sender.send(sender, b"x"),
    ]  # fmt: skip
    recvs = [
        receiver.recv, lambda: receiver.recv(None), lambda: receiver.recv(0), lambda: receiver.recv(0.5),
        lambda: receiver.recv(True), lambda: receiver.recv(timeout=1), lambda: receiver.recv(**soon),
        lambda: receiver.recv(**{"".join(["time", "out"]): 0.5}), lambda: receiver.recv(numpy.float64(0.5)),
        lambda: receiver.recv(2**40), lambda: tbus.Receiver.recv(receiver),
    ]  # fmt: skip
    assert len(sends) == len(recvs)
    for send, recv in zip(sends, recvs):
        assert send() in (None, True) and recv() == b"x"
    sender.send(b"still there")
    wrong = [
        sender.send, lambda: sender.send(b"x", 1, 2), lambda: sender.send(b"x", data=b"x"), lambda: sender.send(b"x", soon=1),
        lambda: sender.send(b"x", timeout="1"), lambda: sender.try_send(b"x", None), sender.try_send, lambda: receiver.recv(1, 2),
        lambda: receiver.recv(1, timeout=1), lambda: receiver.recv(soon=1), lambda: receiver.recv(b"1"),
        lambda: tbus.Sender.send(receiver, b"x"), lambda: tbus.Receiver.recv(),
    ]  # fmt: skip
    for call in wrong:
        with pytest.raises(TypeError):
            call()
    for timeout in (-1, -0.5, float("nan")):
        for call in (lambda: sender.send(b"x", timeout), lambda: receiver.recv(timeout), lambda: receiver.recv(timeout=timeout)):
            with pytest.raises(ValueError):
                call()
    with pytest.raises(OverflowError):
        receiver.recv(10**400)
    assert receiver.recv_many(10) == [b"still there"]


def test_help_tells_the_arguments():
    assert str(inspect.signature(tbus.Sender.send)) == "(self, /, data, timeout=0)"
    assert str(inspect.signature(tbus.Sender.try_send)) == "(self, /, data)"
    assert str(inspect.signature(tbus.Receiver.recv)) == "(self, /, timeout=None)"
    assert tbus.Receiver.recv.__doc__.startswith("The next message.")


def test_order_full_and_many(pair):
    sender, receiver = pair
    sent = 0
    with pytest.raises(tbus.Full):
        while True:
            sender.send(b"%d" % sent)
            sent += 1
    assert sent > 1000 and not sender.try_send(b"x") and sender.send_many([b"x"]) == 0
    assert receiver.recv_many(10) == [b"%d" % i for i in range(10)]
    assert receiver.recv_many(sent, timeout=0) == [b"%d" % i for i in range(10, sent)]
    assert receiver.recv_many(5, timeout=0) == [] and receiver.recv_many(0) == []
    messages = [b"%d" % i for i in range(5000)]
    accepted = sender.send_many(tuple(messages))
    assert 1000 < accepted < 5000
    assert receiver.recv_many(5000) == messages[:accepted]


def test_too_long(pair):
    sender, receiver = pair
    assert sender.max_len == SIZE // 2
    huge = mmap.mmap(-1, 2**31 + 5)  # pages that are never touched
    for data in (bytes(sender.max_len + 1), huge):
        with pytest.raises(tbus.TooLong, match="split it"):
            sender.send(data, timeout=None)
        with pytest.raises(ValueError):
            sender.send_many([data])
    for length in (sender.max_len + 1, 2**31, 2**63):
        with pytest.raises(tbus.TooLong):
            sender.wait(length)
    assert receiver.try_recv() is None


def test_an_error_in_the_middle_tells_how_many(pair):
    sender, receiver = pair
    assert sender.send_many([b"1", b"2", bytes(SIZE)]) == 2
    assert receiver.recv_many(9) == [b"1", b"2"]


def test_what_cannot_be_sent_waits_for_the_next_call(pair):
    sender, receiver = pair
    messages = [b"%d" % i for i in range(300)]
    messages[290] = "text"
    assert sender.send_many(messages) == 256
    assert receiver.recv_many(1000) == messages[:256]
    with pytest.raises(TypeError):
        sender.send_many(messages[256:])
    assert receiver.try_recv() is None


def test_all_that_is_there_comes_in_one_call(pair):
    sender, receiver = pair
    sent = sender.send_many([b""] * 10000)
    assert 1000 < sent < 10000 and len(receiver.recv_many(10**9)) == sent


def test_peeked_of_all_channels(bus):
    """The peeked message is the next one, though it is another channel's turn."""
    with bus.bind(B).receiver() as receiver, bus.bind(A).sender(B) as a, bus.bind(C).sender(B) as c:
        for i in range(50):
            a.send(b"a%d" % i)
            c.send(b"c%d" % i)
        got = []
        for _ in range(100):
            message = receiver.peek(timeout=1)
            assert receiver.sequence is None
            got.append(receiver.recv_from(timeout=1))
            assert got[-1] == (b"%s%d" % (b"a" if message.source == A else b"c", message.sequence), message.source)
        assert len(set(got)) == 100


def test_all_channels_of_an_endpoint(bus, directory):
    write_channels(directory, [(A, B), (C, B)])
    with bus.bind(B).receiver() as receiver, bus.bind(A).sender(B) as a, bus.bind(C).sender(B) as c:
        a.send(b"a")
        c.send(b"c")
        assert {receiver.recv_from(1) for _ in range(2)} == {(b"a", A), (b"c", C)}
        a.send(b"peeked")
        with receiver.peek() as message:
            assert (message.source, message.tobytes()) == (A, b"peeked")
        assert receiver.try_recv() is None and receiver.sequence is None
        # A channel that is added while it receives.
        write_channels(directory, [(A, B), (C, B), ("0.0.7.1", B)])
        with bus.bind("0.0.7.1").sender(B) as added:
            added.send(b"new")
            assert receiver.recv_from(5) == (b"new", "0.0.7.1")


def test_a_deleted_channel_ends_the_iteration(bus, directory):
    with bus.bind(C).sender(B) as sender, bus.bind(B).receiver(C) as receiver:
        sender.send(b"last")
        write_channels(directory, [(A, B)])
        assert list(receiver) == [b"last"]
        with pytest.raises(tbus.Closed):
            receiver.recv()
        with pytest.raises(tbus.Closed):
            sender.send(b"more", timeout=None)
        with pytest.raises(tbus.Closed):
            receiver.wait()


def test_extensions(pair):
    sender, receiver = pair
    sender.set_extensions(timestamp=True, crc=True, trace_id=7)
    sender.send(b"with")
    with receiver.peek() as message:
        assert message.trace_id == 7 and message.timestamp > 1_600_000_000_000_000_000
        assert (message.sequence, message.position) == (0, 0) and receiver.sequence == 0
        assert bytes(message) == b"with"
    assert (sender.sequence, receiver.sequence) == (1, 1)


def test_names_and_addresses(bus, directory):
    assert bus.template == "8.8.8.8"
    endpoint = bus.bind(0x0301)
    assert endpoint.address == B and sorted(endpoint.peers) == [A, C]
    assert tbus.Bus("0x3e8").template == tbus.Bus(str(KEY)).template == bus.template
    tbus.Bus.at(f"{directory}/tbus.{KEY}").close()
    with pytest.raises(tbus.NotFound):
        tbus.Bus(77)
    with pytest.raises(LookupError, match="0.0.9.9"):
        bus.bind("0.0.9.9")
    with pytest.raises(tbus.NotFound):
        bus.bind(A).sender(C)
    for key in ("", "x", "-1", -1, 2**32, "0x"):
        with pytest.raises(tbus.AddressError):
            tbus.Bus(key)
    for address in ("1.2.3", "0.0.3.256", -1, 2**32):
        with pytest.raises(tbus.AddressError):
            bus.bind(address)


def test_one_end_has_one_holder(pair, bus):
    with pytest.raises(tbus.Busy, match="this process itself"):
        bus.bind(A).sender(B)
    pair[0].close()
    bus.bind(A).sender(B).close()

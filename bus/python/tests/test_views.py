"""Peeking without a copy, and views that live longer than they should."""

import gc

import numpy
import pytest
import tbus


def test_a_peeked_message_stays_until_released(pair):
    sender, receiver = pair
    sender.send_many([b"one", b"two"])
    message = receiver.peek()
    assert message.data == b"one" and len(message) == 3 and receiver.peek().sequence == 0
    message.release()
    with pytest.raises(tbus.HandleClosed):
        message.release()
    with pytest.raises(tbus.HandleClosed):
        message.tobytes()
    with pytest.raises(tbus.HandleClosed):
        memoryview(message)
    assert receiver.recv() == b"two"


def test_numpy_sees_the_ring(pair):
    sender, receiver = pair
    sender.send(numpy.arange(1000, dtype=numpy.float32))
    message = receiver.peek()
    values = numpy.frombuffer(message, dtype=numpy.float32)
    assert not values.flags.owndata and values.sum() == 499500
    with pytest.raises(ValueError):
        values[0] = 1  # read-only
    with pytest.raises(BufferError, match="delete the arrays"):
        message.release()
    with pytest.raises(BufferError):
        receiver.recv()
    with pytest.raises(BufferError):
        receiver.close()
    del values
    message.release()
    assert receiver.try_recv() is None


def test_the_view_goes_with_its_message(pair):
    sender, receiver = pair
    sender.send(b"abc")
    with receiver.peek() as message:
        view = message.data
        assert message.data is view and view.readonly
    with pytest.raises(ValueError):
        view[0]
    sender.send(b"def")
    message = receiver.peek()
    part = message.data[1:]
    with pytest.raises(BufferError):
        message.release()
    assert part == b"ef"
    part.release()
    message.release()


def test_a_release_that_is_refused_leaves_the_view(pair):
    sender, receiver = pair
    sender.send(b"abc")
    message = receiver.peek()
    view, other = message.data, memoryview(message)
    with pytest.raises(BufferError):
        message.release()
    assert view == b"abc"
    other.release()
    message.release()
    with pytest.raises(ValueError):
        view[0]


def test_leaving_does_not_hide_the_exception(pair):
    sender, receiver = pair
    sender.send(b"abc")
    with pytest.raises(RuntimeError, match="the cause"), receiver.peek():
        receiver.close()
        raise RuntimeError("the cause")
    with pytest.raises(tbus.HandleClosed):
        receiver.recv()


def test_an_exception_keeps_the_message(pair):
    sender, receiver = pair
    sender.send(b"again")
    with pytest.raises(RuntimeError), receiver.peek():
        raise RuntimeError
    assert receiver.recv() == b"again"


def test_another_call_takes_the_message(pair):
    sender, receiver = pair
    sender.send_many([b"one", b"two"])
    message = receiver.peek()
    assert receiver.recv() == b"one"
    with pytest.raises(tbus.HandleClosed):
        memoryview(message)
    with message:
        pass  # released before: nothing to do
    assert receiver.recv() == b"two"


def test_a_view_keeps_everything_alive(bus):
    sender, receiver = bus.bind("0.0.1.1").sender("0.0.3.1"), bus.bind("0.0.3.1").receiver("0.0.1.1")
    sender.send(b"alive" * 1000)
    view = memoryview(receiver.peek())
    del receiver, bus
    gc.collect()
    assert view.tobytes() == b"alive" * 1000
    view.release()
    assert sender.send(b"x") is None


def test_empty_payload(pair):
    sender, receiver = pair
    sender.send(b"")
    with receiver.peek() as message:
        assert message and len(message) == 0 and message.data == b"" and message.tobytes() == b""


def test_messages_are_made_by_receivers_only(pair):
    with pytest.raises(tbus.Empty):
        tbus.Message(pair[1])
    for wrong in (None, pair[0], 1):
        with pytest.raises(TypeError):
            tbus.Message(wrong)

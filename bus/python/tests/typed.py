"""Read by mypy only: what is typed as what, and what is refused."""

import array

import libtbus
import numpy
import tbus


async def typed(bus: tbus.Bus) -> None:
    endpoint = bus.bind("0.0.1.1")
    sender: tbus.Sender = endpoint.sender("0.0.3.1")
    sender.send(b"bytes")
    sender.send(memoryview(b"x"), timeout=None)
    sender.send(array.array("d", [1.0]))
    sender.send("text")  # type: ignore[arg-type]
    count: int = sender.send_many([b"1", bytearray(b"2")])
    await sender.asend(b"x")
    with endpoint.receiver() as receiver:
        data: bytes = receiver.recv(timeout=count)
        received, source = receiver.recv_from()
        assert data + received and source.upper()
        maybe = receiver.try_recv()
        maybe.decode()  # type: ignore[union-attr]
        with receiver.peek() as message:
            view: memoryview = message.data
            numpy.frombuffer(message.data, dtype=numpy.uint8)
            view.release()
        for data in receiver:
            break
        async for data in receiver:
            break
        data = await receiver.arecv()
    code: int = libtbus.Tbus("1000", "0.0.1.1", "0.0.3.1").send_message("x")
    assert libtbus.tbus_error_string(code)

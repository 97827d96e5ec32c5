"""Waiting in an event loop: a thread of the handle's watches the ring, and a descriptor tells the loop."""

import asyncio
from typing import TYPE_CHECKING, Union

from ._errors import Closed, Full
from ._tbus import Receiver, Sender

if TYPE_CHECKING:
    from typing_extensions import Buffer


def _tell(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def ready(handle: Union[Receiver, Sender], length: int) -> None:
    """Returns when a call of the handle would not have to wait, or would fail."""
    ticket = handle._ticket(length)
    if ticket is None:
        return
    loop = asyncio.get_running_loop()
    future: "asyncio.Future[None]" = loop.create_future()
    loop.add_reader(ticket.fileno(), _tell, future)
    try:
        await future
    finally:
        loop.remove_reader(ticket.fileno())
        ticket.close()


async def recv(receiver: Receiver) -> bytes:
    while True:
        message = receiver.try_recv()
        if message is not None:
            return message
        await ready(receiver, 0)


async def following(receiver: Receiver) -> bytes:
    try:
        return await recv(receiver)
    except Closed:
        raise StopAsyncIteration from None


async def send(sender: Sender, data: "Buffer") -> None:
    while True:
        try:
            return sender.send(data)
        except Full:
            await ready(sender, memoryview(data).nbytes)

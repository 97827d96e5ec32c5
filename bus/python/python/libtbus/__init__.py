"""The module of old programs. New ones use the package ``tbus``, which has exceptions instead of codes.

>>> bus = libtbus.Tbus("1000", "0.0.1.1", "0.0.3.1")
>>> if bus.init():
...     code = bus.send_message("hello")
...     if code != 0:
...         print(libtbus.tbus_error_string(code))
...     print(bus.recv_message())  # "None" when there is none
...     bus.finit()
"""

from typing import Optional, Union

import tbus
from tbus import _tbus

__all__ = ["Tbus", "tbus_error_string"]


def tbus_error_string(code: int) -> str:
    """What an error code means; codes may be given as negative numbers or as unsigned ones."""
    return _tbus.error_string(code)


def _code_of(error: tbus.Error) -> int:
    names = {
        tbus.Full: "CHANNEL_FULL",
        tbus.Closed: "NO_CHANNEL",
        tbus.NotFound: "NO_CHANNEL",
        tbus.TooLong: "MSG_TOO_LONG",
        tbus.Damaged: "CHANNEL_DAMAGED",
        tbus.Forked: "FORKED",
        tbus.HandleClosed: "NOT_INITIALIZED",
    }
    name = names.get(type(error), "SYSTEM")
    return _tbus.codes["TBUS_ERR_" + name]


class Tbus:
    """Both ends of a process's side of one channel.

    ``send`` is this process's address, from which messages are sent; ``recv`` is the other end's, which receives them. The
    process there gives them the other way round. Messages have any length up to half the ring.
    """

    def __init__(self, key: Union[int, str], send: str, recv: str) -> None:
        self._key = key
        self._addresses = (send, recv)
        self._sender: Optional[tbus.Sender] = None
        self._receiver: Optional[tbus.Receiver] = None

    def init(self) -> bool:
        """Attaches. False if there is no such bus or channel, another process has this end of it, or an argument is none."""
        self.finit()
        try:
            with tbus.Bus(self._key) as bus, bus.bind(self._addresses[0]) as endpoint:
                self._sender = endpoint.sender(self._addresses[1])
                self._receiver = endpoint.receiver(self._addresses[1])
        except (tbus.Error, TypeError, ValueError):  # ValueError: a text that is no Unicode
            self.finit()
            return False
        return True

    def send_message(self, message: Union[str, bytes]) -> int:
        """Sends one message, a text as UTF-8. 0, or an error code."""
        if isinstance(message, str):
            try:
                message = message.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                return _tbus.codes["TBUS_ERR_BAD_ARGUMENT"]
        elif not isinstance(message, bytes):
            return _tbus.codes["TBUS_ERR_BAD_ARGUMENT"]
        if self._sender is None:
            return _tbus.codes["TBUS_ERR_NOT_INITIALIZED"]
        try:
            self._sender.send(message)
        except tbus.Error as error:
            return _code_of(error)
        return 0

    def recv_message(self) -> str:
        """The next message as a text, "None" when there is none, and after the channel was deleted. What is no UTF-8 is in it by
        surrogateescape. Messages whose CRC is wrong are passed over. A ring that is damaged raises tbus.Damaged, the use of a
        parent's channel in a forked child tbus.Forked."""
        while self._receiver is not None:
            try:
                message = self._receiver.try_recv()
            except tbus.BadCrc:
                self._receiver.peek(0).release()
                continue
            except tbus.Closed:
                break
            if message is None:
                break
            return message.decode("utf-8", "surrogateescape")
        return "None"

    def finit(self) -> None:
        """Lets go of the channel. Nothing if that was done before."""
        handles = (self._sender, self._receiver)
        self._sender = self._receiver = None
        for handle in handles:
            if handle is not None:
                try:
                    handle.close()
                except tbus.Forked:
                    pass  # they are the parent's

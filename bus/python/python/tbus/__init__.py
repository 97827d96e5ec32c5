"""Message channels between processes, in shared memory, which stretch across hosts.

>>> bus = tbus.Bus(1000)
>>> me = bus.bind("0.0.1.1")
>>> me.sender("0.0.3.1").send(b"hello")
>>> me.receiver("0.0.3.1").recv(timeout=1)
"""

from ._errors import (
    AddressError,
    BadCrc,
    Busy,
    Closed,
    Damaged,
    Empty,
    Error,
    Forked,
    Full,
    HandleClosed,
    NotFound,
    NotPermitted,
    SystemFailed,
    TooLong,
)
from ._tbus import Bus, Endpoint, Message, Receiver, Sender, __version__

__all__ = [
    "AddressError",
    "BadCrc",
    "Bus",
    "Busy",
    "Closed",
    "Damaged",
    "Empty",
    "Endpoint",
    "Error",
    "Forked",
    "Full",
    "HandleClosed",
    "Message",
    "NotFound",
    "NotPermitted",
    "Receiver",
    "Sender",
    "SystemFailed",
    "TooLong",
    "__version__",
]

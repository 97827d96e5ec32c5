"""What can go wrong. Each text says what happened, to what, and what to do about it."""


class Error(Exception):
    """Whatever tbus refuses or fails to do."""


class Full(Error):
    """The ring has no room for the message now. Nothing was written."""


class Empty(Error):
    """No message is there, or none came in time."""


class Closed(Error):
    """The ring takes no more messages, and none will come: its channel was deleted."""


class TooLong(Error, ValueError):
    """The message is longer than half the ring. Nothing was written."""


class BadCrc(Error):
    """The message does not have the CRC that was sent with it. It stays in the ring; ``peek().release()`` goes on without it."""


class NotFound(Error, LookupError):
    """There is no such bus, ring or channel."""


class NotPermitted(Error, PermissionError):
    """This user may not do that."""


class Busy(Error):
    """Another handle, in this process or in another, has this end of the channel."""


class Damaged(Error):
    """Another process wrote what the rules forbid. The handle is of no further use."""


class Forked(Error):
    """The handle was made before a fork and is used in the child. Attach anew in the child."""


class AddressError(Error, ValueError):
    """The text is no address of this bus, or no key of a bus."""


class HandleClosed(Error, ValueError):
    """The handle was closed, or the message released, and is used all the same."""


class SystemFailed(Error, OSError):
    """The operating system refused something."""


ALL = (
    Error, Full, Empty, Closed, TooLong, BadCrc, NotFound, NotPermitted, Busy, Damaged, Forked, AddressError, HandleClosed,
    SystemFailed,
)  # fmt: skip

for _error in ALL:
    _error.__module__ = "tbus"

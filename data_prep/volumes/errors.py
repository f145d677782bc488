"""I/O failures that are not the file's fault, as opposed to damage, for which readers raise any exception."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TypeVar

from meddap.errors import MeddapError

Plane = TypeVar("Plane")

# The disk, the network or a limit of this process: a retry may succeed
_TROUBLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
    errno.ENOSPC,
    errno.EDQUOT,
}
_TROUBLE |= {errno.ENOENT, errno.ENOLINK, errno.EREMOTEIO, errno.ENOMEM, errno.EINTR, errno.ENODEV, errno.EHOSTDOWN}


class UnreadableError(MeddapError):
    """An input that the machine could not read. `reason` holds no path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DecoderPanic(RuntimeError):
    """A decoder written in Rust gave up on damaged pixels; what it raises itself is not an Exception."""


def without_panics(planes: Iterator[Plane]) -> Iterator[Plane]:
    """Yield what a decoder yields. Raises DecoderPanic where one written in Rust gives up."""
    while True:
        try:
            plane = next(planes)
        except StopIteration:
            return
        except BaseException as error:
            if type(error).__name__ == "PanicException":
                raise DecoderPanic("the decoder gave up") from error
            raise
        yield plane


def unless_trouble(error: Exception) -> None:
    """Return if the file is to blame for `error`; raise UnreadableError if the machine is."""
    if isinstance(error, UnreadableError):
        raise error
    if isinstance(error, OSError) and error.errno in _TROUBLE:
        raise UnreadableError(f"cannot be read ({error.strerror})") from error
    if isinstance(error, MemoryError):
        raise UnreadableError("takes more memory than limits.volume_gb allows") from error

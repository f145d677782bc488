"""What is no fault of a file: told apart from damage, which readers report by exceptions of any type."""

from __future__ import annotations

import errno

# The disk, the network or a limit of this process: another day the same file is well
_TROUBLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
}
_TROUBLE |= {errno.ENOENT, errno.ENOLINK, errno.EREMOTEIO, errno.ENOMEM, errno.EINTR, errno.ENODEV, errno.EHOSTDOWN}


class UnreadableError(RuntimeError):
    """An input that the machine did not let us read. `reason` holds no path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def unless_trouble(error: Exception) -> None:
    """Return if the file is to blame for `error`; raise UnreadableError if the machine is."""
    if isinstance(error, UnreadableError):
        raise error
    if isinstance(error, OSError) and error.errno in _TROUBLE:
        raise UnreadableError(f"cannot be read ({error.strerror})") from error
    if isinstance(error, MemoryError):
        raise UnreadableError("takes more memory than limits.volume_gb allows") from error

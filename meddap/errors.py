"""What can go wrong in a way that a user can mend. Standard library only."""

from __future__ import annotations


class MeddapError(Exception):
    """Base of every error of ours. Its text is one line: the file or key, the value found there, and what to do."""

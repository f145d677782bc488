"""Examples, splits and features of a task."""

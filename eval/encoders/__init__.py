"""Frozen encoders: checkpoints, other libraries, the pixel baseline."""

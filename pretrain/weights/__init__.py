"""Weights in and out: published files, encoders, exports."""

"""Synthetic anatomy."""

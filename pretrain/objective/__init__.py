"""Losses and targets, on plain tensors."""

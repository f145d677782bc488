"""Layouts of public collections: one file of rules each, and the engine that recognises them."""

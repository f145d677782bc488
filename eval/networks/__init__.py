"""Trained heads, decoders and networks."""

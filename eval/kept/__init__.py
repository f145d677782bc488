"""Fitted heads kept beside the results of a probe: written, described by a card, read again."""

"""One file per idea, and their registry."""

"""Jobs of a cluster."""

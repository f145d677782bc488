"""The vision transformer and its heads."""

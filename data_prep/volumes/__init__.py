"""A volume, its grid and its scale, from reader to slice."""

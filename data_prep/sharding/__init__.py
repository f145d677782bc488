"""From volumes to a finished data set, whole or not at all."""

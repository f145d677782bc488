"""From shards to crops and masks."""

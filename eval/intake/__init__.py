"""New images without labels, raw or in shards, as examples for embeddings and predictions."""

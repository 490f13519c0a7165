"""Training GroupViT on image-text shards and their concept archives."""

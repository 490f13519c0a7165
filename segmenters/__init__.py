"""Models that give every place of an image an embedding, and their checkpoints."""

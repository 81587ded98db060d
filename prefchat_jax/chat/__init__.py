"""Chat: stored replies, chosen by similarity, confidence, diversity and style."""

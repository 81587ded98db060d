"""Many JSONL files to examples, buckets, a split, and a training order."""

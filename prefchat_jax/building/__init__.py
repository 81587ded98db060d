"""Building: many JSONL corpora in, one clean corpus and a report out."""

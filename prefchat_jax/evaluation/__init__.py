"""Evaluation: how good a run is on rows that it never saw, and where it errs."""

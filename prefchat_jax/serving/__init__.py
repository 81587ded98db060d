"""Serving: a run behind an HTTP interface that chat clients know."""

"""Preference optimization for retrieval chat, in pure JAX."""

__version__ = "0.1.0"

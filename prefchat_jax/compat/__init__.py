"""Checkpoints of the PyTorch reference: its network, its features, its files.

Whatever exists only for them lives here. `prefchat_jax.cli` alone imports it, and
`training/kinds.py` names its classifier, for runs that were imported.
"""

"""Text to arrays: dialogue turns and hashed n-gram features. NumPy only."""

"""A decoder and its weights."""

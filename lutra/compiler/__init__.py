"""A kernel language in Python and its compiler.  Knows no formats and no models."""

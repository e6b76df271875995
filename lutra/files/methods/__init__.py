"""Quantised Hugging Face folders, one method a file: table.py chooses, layout.py says what a method states."""

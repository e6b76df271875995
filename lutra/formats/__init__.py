"""What the bits of a weight mean.

Read integer.py first (the arithmetic), then packing.py (where the bits lie), format.py, qtensor.py and catalog.py.
"""

"""What the bits of a weight mean.  Read integer.py first, then packing.py, format.py, qtensor.py, catalog.py; picture.py draws."""

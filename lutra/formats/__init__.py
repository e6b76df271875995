"""What the bits of a weight mean.

Read integer.py first (the arithmetic), then packing.py (where the bits lie), format.py with tables.py and scales.py
(the axes), qtensor.py, and catalog.py with spelling.py (which formats there are).  trits.py is ternary below 2 bits,
sidecars.py what may stand beside a weight, reduce.py the order of float sums, picture.py what `inspect format` draws.
"""

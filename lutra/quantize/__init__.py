"""Float matrices into QTensors: one algorithm, one file; pure functions of arrays.  Read rounding.py first."""

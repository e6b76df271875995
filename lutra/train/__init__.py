"""Train a ternary decoder in PyTorch and export it to the folder that lutra runs.

Needs the extra `lutra[train]`.  Nothing outside this package imports torch, and this file does not either.
"""

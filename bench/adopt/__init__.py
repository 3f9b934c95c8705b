"""Kernels that somebody wrote for something else: read, matched to a layer's contract, and written down as variants."""

NONE_RIGHT = "no way that was tried is right"
TILE = "a tile's size"  # which may stay as it is guessed

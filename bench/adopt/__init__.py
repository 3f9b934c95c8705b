"""Kernels that somebody wrote for something else: read, matched to a layer's contract, and written down as variants."""

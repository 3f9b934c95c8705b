"""Liger-Kernel as variants of Layerbench: <backend>/<layer>/<variant>.py, as in kernels/."""

"""Variants: kernels/<backend>/<layer>/<variant>.py. A file's path is its name; nothing is registered by hand."""


class Unavailable(RuntimeError):
    """This machine cannot run a variant; the message says what is missing and how to get it."""

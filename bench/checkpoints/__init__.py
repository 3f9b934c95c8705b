"""A training run's state on disk: the project's own checkpoints, and files of weights that others write and read."""

KEEP_LAST = 3
EXPORTS = ("hf", "llmc", "nanogpt")  # formats of bench.export for a training run

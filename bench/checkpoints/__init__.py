"""A training run's state on disk: the project's own checkpoints, and files of weights that others write and read."""

KEEP_LAST = 3
EXPORTS = ("hf", "llama2c", "gguf", "llmc", "nanogpt")  # formats of bench.export for a training run
GGUF_KINDS = ("fp32", "bf16", "fp16", "q8_0")  # what a .gguf file keeps matrices in
GROUP = 64  # int8 values that share a scale in llama2.c's files

"""What all rooms stand on: variants, a case and its memory, a process of its own, statistics, files."""

WORKING_DTYPES = ("fp32", "bf16", "fp16")  # of a case

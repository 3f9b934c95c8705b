"""A training run of any length from the registry's variants: it survives what ends it, and goes on bit for bit."""

SCHEDULES = ("cosine", "linear", "constant", "wsd")
LR, FINAL_FRACTION = 3e-4, 0.0
VAL_BATCHES = 20
SAMPLE_TOKENS, TEMPERATURE, TOP_K = 64, 0.8, 50
NOT_FINITE_IN_A_ROW = 10
PARITY_EVERY = 50
WINDOW = 128  # values that an outlier is judged by
OPTIMIZERS = ("replicated", "sharded")  # over ranks
FSDP = "fsdp2"  # PyTorch's training on several ranks

"""Text from a model: prompts read, tokens drawn one after the other, how fast that is, and how fast others are."""

BASELINES = ("eager", "compile", "transformers", "llama.cpp")
OWN_CLOCK = ("transformers", "llama.cpp")  # that the host times on a GPU too
QUANTISE = ("q8_0",)
STEPS, SIMULATED_STEPS = 64, 4  # tokens a sequence, where the context has room for them
ROUNDS = 3  # generations of each contestant that are timed, after one that is not
TIME_LIMIT_S = 600.0  # for one generation

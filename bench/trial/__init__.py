"""One variant on trial: the truth, the checks, the race, and the session that puts them together."""

STAGES = {
    "check": ("smoke", "check", "sanitize"),
    "time": ("check", "time"),
    "e2e": ("e2e", "generate"),
}  # kinds of pieces, by --stage
GPU_TIMED_B = 64  # sequences of a layer that a suite times on a GPU
ROOMS = ("bench.trial.room", "bench.trial.judge")  # what happens in processes of their own

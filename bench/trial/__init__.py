"""One variant on trial: the truth, the checks, the race, and the session that puts them together."""

STAGES = {"check": ("check", "sanitize"), "time": ("time",), "e2e": ("e2e",)}  # by --stage; the doctor always comes
ROOMS = ("bench.trial.room", "bench.trial.judge")  # what happens in processes of their own

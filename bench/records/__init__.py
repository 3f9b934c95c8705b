"""What a run writes down, and what is read from it."""

PACK_FILES, PACK_BYTES = 8, 16 << 20
DASH = "–"  # for what was not measured
FORMATS = ("pytest-benchmark", "nvbench", "github-action-benchmark", "bmf", "csv", "parquet")
FAILURES = ("slower", "wrong", "missing", "unclear")  # what a gate may fail on: bench/records/gate.py
ANY = FAILURES[:3]

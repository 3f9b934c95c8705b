"""For all tests: runs leave no page behind unless a test wants one; it takes seconds to build."""

import os

os.environ.setdefault("LAYERBENCH_REPORT", "0")

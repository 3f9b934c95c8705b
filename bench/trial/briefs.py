"""Briefs: the inputs and the truth of a case, worked out once by a judge and handed on as files."""

import tempfile
from dataclasses import replace
from pathlib import Path

from bench.core.case import Case
from bench.core.process import ProcessFailed
from bench.core.variants import Variant
from bench.trial.room import Setting
from bench.trial.worker import Worker


class Briefs:
    """Briefs worked out once, by a judge that never loads the variants, and handed on as files.

    Use as a context manager: the files live in a temporary folder.
    """

    def __init__(self, setting: Setting):
        # Truth in fp64 may take longer than any variant.
        self.setting = replace(setting, time_limit=max(600.0, setting.time_limit))
        self.judge: Worker | None = None
        self.known: dict[tuple[str, int | None, bool], Path] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="layerbench-")
        self.folder = Path(self._folder.name)

    def __enter__(self) -> "Briefs":
        return self

    def __exit__(self, *_: object) -> None:
        if self.judge:
            self.judge.close()
        self._folder.cleanup()

    def get(
        self, case: Case, yardstick: Variant | None, perturbation: int | None = None, values_only: bool = False
    ) -> Path:
        """The file of a case's brief; with `perturbation`, of the truth after its values were changed by that seed."""
        key = (str(case), perturbation, values_only)
        if key not in self.known:
            if self.judge is None or not self.judge.alive:
                self.judge = Worker(None, self.setting)
            path = self.folder / f"{len(self.known)}.pt"
            try:
                self.judge.ask(
                    "write_brief",
                    case=case,
                    yardstick=yardstick,
                    perturbation=perturbation,
                    values_only=values_only,
                    path=path,
                )
            except ProcessFailed as failure:
                # Not the variant's fault, whichever it is.
                evidence = f"the truth could not be worked out: {failure.evidence}"
                raise ProcessFailed("error", evidence) from failure
            self.known[key] = path
        return self.known[key]

    def forget(self) -> None:
        """Delete the files: a large shape's truth is gigabytes."""
        for path in self.known.values():
            path.unlink(missing_ok=True)
        self.known.clear()

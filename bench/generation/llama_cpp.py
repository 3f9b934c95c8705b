"""llama.cpp on the same weights, through the package llama-cpp-python: another contestant of `bench.generate`.

Its own calls, as its programs make them: the prompts in one batch, whose last tokens alone have logits, then a batch of
one token a sequence; the likeliest token is taken here. Weights go there as a GGUF file, in the dtype that ours
computes with, or Q8_0 where ours is in int8; keys and values are kept in the working dtype. Times are the host's, from
the call until the logits are there.
"""

import ctypes
import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.checkpoints import gguf
from bench.cli import CANNOT_RUN, CannotGoOn
from bench.generation.plan import Q8, Job
from bench.generation.rooms import Done, Room
from bench.machine.devices import is_gpu
from reference.models.llama2 import Llama2

PACKAGE = "llama_cpp"  # as it is imported; llama-cpp-python by the name that it is installed by
MOST_AT_ONCE = 512  # tokens of a batch that are computed together, its own default


def kind_of(job: Job) -> str:
    """What its matrices are kept in."""
    return "q8_0" if job.form == Q8 else job.sizes.dtype


class LlamaCppRoom(Room):
    """The package's lowest level, which is llama.cpp's C interface."""

    def ready(self) -> str:
        self.api: Any = importlib.import_module(PACKAGE)
        # Kept, for it is called from C; what it says of loading a model is nobody's concern.
        self.quiet = self.api.llama_log_callback(lambda level, text, data: None)
        self.api.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.api.llama_backend_init()
        if is_gpu(self.job.device) and not self.api.llama_supports_gpu_offload():
            raise CannotGoOn("llama-cpp-python was built without GPUs (CMAKE_ARGS=-DGGML_CUDA=ON)", CANNOT_RUN)
        self._load()
        s = self.sizes
        self.prompts = self.api.llama_batch_init(s.B * s.T, 0, 1)
        self.one = self.api.llama_batch_init(s.B, 0, 1)
        self.run()
        return f"llama-cpp-python {self.api.__version__}, weights in {kind_of(self.job)}"

    def _load(self) -> None:
        api, s, model = self.api, self.sizes, self.model
        assert isinstance(model, Llama2)
        params = api.llama_model_default_params()
        params.n_gpu_layers = model.L + 1 if is_gpu(self.job.device) else 0
        params.use_mmap = False  # in its own memory, as everybody's are
        with tempfile.TemporaryDirectory(prefix="layerbench-") as folder:
            file = Path(folder) / "model.gguf"
            gguf.write_model(file, model, self.rounded(), kind_of(self.job))
            self.loaded = api.llama_model_load_from_file(str(file).encode(), params)
        if not self.loaded:
            raise CannotGoOn(f"llama.cpp does not load {model.name}", CANNOT_RUN)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = s.B * s.S, s.B
        params.n_batch, params.n_ubatch = s.B * s.T, max(s.B, min(s.B * s.T, MOST_AT_ONCE))
        params.n_threads = params.n_threads_batch = self.job.threads
        params.type_k = params.type_v = gguf.TYPES[s.dtype]
        params.kv_unified = False
        self.context = api.llama_init_from_model(self.loaded, params)
        if not self.context:
            raise CannotGoOn(f"llama.cpp has no context of {s.B} x {s.S} tokens in {s.dtype}", CANNOT_RUN)

    def run(self, turn: int = 0) -> Done:
        s, (prompts, _) = self.sizes, self.job.text(turn)
        drawn: list[list[int]] = [[] for _ in prompts]
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

        def prefill() -> None:
            rows = [(t, i, b, i + 1 == s.T) for b, prompt in enumerate(prompts) for i, t in enumerate(prompt)]
            self._decode(self.prompts, rows, drawn)

        def step() -> None:
            at = s.T + len(drawn[0]) - 1
            self._decode(self.one, [(ids[-1], at, b, True) for b, ids in enumerate(drawn)], drawn)

        prefill_s = self._seconds(prefill)
        step_s = [self._seconds(step) for _ in range(s.steps - 1)]
        return Done(prefill_s=prefill_s, first_s=prefill_s, step_s=step_s, tokens=drawn, last=[], changed="")

    def _seconds(self, what: Callable[[], None]) -> float:
        start = time.perf_counter()
        what()
        return time.perf_counter() - start

    def _decode(self, batch: Any, rows: list[tuple[int, int, int, bool]], drawn: list[list[int]]) -> None:
        """Rows of (token, position, sequence, whether its logits are wanted); the likeliest of those is drawn."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode of {len(rows)} tokens: {code}")
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = self.api.llama_get_logits_ith(self.context, i)  # waits for them
                drawn[sequence].append(int(np.ctypeslib.as_array(logits, (self.model.v,)).argmax()))

    def peak_bytes(self) -> int:
        """On a GPU nobody here knows what it holds."""
        return 0 if self.on_gpu else super().peak_bytes()

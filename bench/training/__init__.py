"""The race of training steps: contestants, the parity gate, and what came out."""

BASELINES = ("eager", "compile", "compile-plain", "compile-bf16")
CPU_BASELINES, GPU_BASELINES = "eager,compile", "eager,compile,compile-plain"
# With --minutes the first one from the start: what a plain user gets. Then what costs least, and the dearest.
CPU_IN_TIME, GPU_IN_TIME = "compile,eager", "compile-plain,eager,compile"
COMPILE_LIMIT_S = 300.0
CPU_B, CPU_T = 4, 64
# Of a GPU with 80 GB; halved where it does not fit.
GPU_B = {"gpt2-124m": 64, "gpt2-350m": 32, "gpt2-774m": 16, "gpt2-1558m": 8, "llama2-7b": 4}
GPU_T = 1024
STEPS, GPU_STEPS, SIMULATED_STEPS = 10, 30, 2
WARM_UP = 2  # steps before the timed ones; they count for the gate

"""What a library says where it has no kernel for what it was asked: nothing ran, and nothing is wrong.

A refusal is known by its type and its words. An error of the GPU, of memory or of the caller has others, and stays an
error: the words below are those of cuDNN's frontend, cuBLAS and ATen for a shape, layout or dtype that they lack.
"""

import re

# Of the message; and what the row says that the variant does not have.
WORDS = (
    (r"CUDNN_STATUS_NOT_SUPPORTED|cudnn[ _]?frontend.*\bNo \w.*(plan|engine|config)", "what cuDNN has no plan for"),
    (r"\bNo (valid|suitable) (execution plan|engine|algorithm)", "what cuDNN has no plan for"),
    (r"CUBLAS_STATUS_NOT_SUPPORTED", "what cuBLAS does not support"),
    (r"No available kernel\.? Aborting|No viable backend for scaled_dot_product", "what no fused attention takes"),
    (r"Flash ?Attention\b.*\bonly supports?\b", "what flash attention does not support"),
    (r"cudnn SDPA\b.*\b(does not|only) supports?\b", "what cuDNN has no plan for"),
    (r"\bnot implemented for '\w+'|Could not run 'aten::", "what ATen has no kernel for"),
)
NEVER = re.compile(r"CUDA error|out of memory|illegal|misaligned|unspecified launch|device-side assert", re.IGNORECASE)


def refusal(error: BaseException) -> str | None:
    """What a library does not have, in a few words, where an error is its refusal; else None."""
    if type(error) not in (RuntimeError, NotImplementedError):  # neither torch.AcceleratorError nor OutOfMemoryError
        return None
    said = str(error).replace("CUDA error: CUBLAS", "CUBLAS")  # so ATen begins what cuBLAS answers
    if NEVER.search(said):
        return None
    return next((told for words, told in WORDS if re.search(words, said, re.IGNORECASE | re.DOTALL)), None)

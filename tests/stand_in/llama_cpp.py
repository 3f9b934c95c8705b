"""llama-cpp-python without llama.cpp: the file that it is given is read by our reader, and a batch is what the plain
network says of each sequence's tokens so far. A token at another position than its sequence's next one is an error, as
it is there."""

import ctypes
from types import SimpleNamespace

import torch

from bench.checkpoints import gguf
from reference.models.plain import network

__version__ = "made up"
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Context:
    def __init__(self, net, params):
        self.net, self.params, self.texts, self.logits = net, params, {}, {}


def llama_log_set(callback, data):
    pass


def llama_backend_init():
    pass


def llama_supports_gpu_offload():
    return False


def llama_model_default_params():
    return SimpleNamespace()


def llama_context_default_params():
    return SimpleNamespace()


def llama_model_load_from_file(path, params):
    model, weights = gguf.read_model(gguf.Path(path.decode()))
    net = network(model)
    net.load(weights)
    return net.double()


def llama_init_from_model(net, params):
    return Context(net, params)


def llama_batch_init(tokens, embd, sequences):
    rows = range(tokens)
    return SimpleNamespace(
        n_tokens=0, token=[0] * tokens, pos=[0] * tokens, logits=[0] * tokens, n_seq_id=[0] * tokens,
        seq_id=[[0] * sequences for _ in rows],
    )  # fmt: skip


def llama_get_memory(context):
    return context


def llama_memory_clear(context, data):
    context.texts.clear()


def llama_decode(context, batch):
    if batch.n_tokens > context.params.n_batch:
        return 1
    context.logits = {}
    for i in range(batch.n_tokens):
        text = context.texts.setdefault(batch.seq_id[i][0], [])
        if batch.pos[i] != len(text) or batch.n_seq_id[i] != 1:
            return -1
        text.append(batch.token[i])
        if batch.logits[i]:
            with torch.no_grad():
                row = context.net(torch.tensor([text]))[0, -1].float().tolist()
            context.logits[i] = (ctypes.c_float * len(row))(*row)
    longest = context.params.n_ctx // context.params.n_seq_max
    return 1 if any(len(text) > longest for text in context.texts.values()) else 0


def llama_get_logits_ith(context, i):
    return ctypes.cast(context.logits[i], ctypes.POINTER(ctypes.c_float))

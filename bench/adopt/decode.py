"""A decode attention that takes one token and one cache of (positions, heads, channels), as llama2.c has it.

The contract has several sequences and tokens, and keeps the keys of a head together. A launch for each token and head
of the cache, of the queries that share it, sees a cache of one head, which lies the same way in both. What the kernel
finds in the cache already, a launch of ours appends first.
"""

from pathlib import Path

from bench.adopt.cuda import Writer
from bench.adopt.names import plain_name, words
from bench.adopt.ours import APPENDED
from bench.adopt.variant import DECIDE, Adopted
from kernels.cuda.signature import Parameter
from reference.contract import Pass, Tensor

STEP = Pass(
    inputs=(Tensor("q", "NH HS"),),
    scalars=(),
    outputs=(
        Tensor("out", "NH HS"),
        Tensor("k_cache", "S HS", inplace=True),
        Tensor("v_cache", "S HS", inplace=True),
    ),
)
GIVEN = {  # of the queries that share a head of the cache; of one query, where the kernel knows of no sharing
    "q": ("qkv[b, t, g * group :]", "qkv[b, t, h:]"),
    "out": ("out[b, t, g * group :]", "out[b, t, h:]"),
    "k_cache": ("k_cache[b, g]", "k_cache[b, h // group]"),
    "v_cache": ("v_cache[b, g]", "v_cache[b, h // group]"),
}
CALLED = {
    **dict.fromkeys(words("q sq query queries xq"), "q"),
    **dict.fromkeys(words("out o output sxb xb result y"), "out"),
    **dict.fromkeys(words("key_cache k_cache kcache cache_k keys key k"), "k_cache"),
    **dict.fromkeys(words("value_cache v_cache vcache cache_v values value val v"), "v_cache"),
}
SCORES = words("att satt scores score attn preatt qk attn_scores att_scores attention scratch")
POSITION = words("pos position cur_pos current_pos token_pos curr_pos")
SHARED = words("kv_mul kvmul gqa_size n_rep group_size q_per_kv n_kv_heads num_kv_heads")
LENGTH = words("seq_len seqlen max_seq_len max_seqlen max_len seq_length n_ctx context_len kv_len")
SIZES = {
    **dict.fromkeys(words("kv_dim kvdim head_size headsize head_dim hs d_head dhead"), ("HS", "HS")),
    **dict.fromkeys(SHARED | words("n_heads num_heads nheads n_head"), ("group", "1")),
    **dict.fromkeys(words("n_kv_heads num_kv_heads"), ("1", "1")),
    **dict.fromkeys(words("dim d_model q_dim"), ("group * HS", "HS")),
    **dict.fromkeys(words("loff layer_offset kv_offset l_off"), ("0", "0")),
    **dict.fromkeys(words("scale softmax_scale attn_scale"), ("HS**-0.5", "HS**-0.5")),
    **dict.fromkeys(LENGTH, ("S", "S")),
    **dict.fromkeys(POSITION, ("S - 1", "S - 1")),  # in a grid or of shared memory: that of the last one
}


class OfOneToken(Writer):
    """A kernel as a step of one token of one sequence."""

    def __init__(self, source, unit, read, phase: str, p: Pass, launcher, entry: str, name: str, defines=(), *rest):
        super().__init__(source, unit, read, phase, STEP, launcher, entry, name, defines, *rest)
        self.contract = p

    @property
    def alone(self) -> bool:
        """Whether it knows of no queries that share a head of the cache."""
        return not any(plain_name(q.name) in SHARED for q in self.signature.parameters)

    def _match(self) -> dict[str, str]:
        named = {q.name: CALLED.get(plain_name(q.name), "") for q in self.signature.parameters if q.pointer}
        return {name: tensor for name, tensor in named.items() if tensor}

    def fits(self) -> bool:
        """Whether it has all that a step has, and is told by value which token it is."""
        return bool(self._told()) and sorted(self.matched.values()) == sorted(GIVEN)

    def _told(self) -> str:
        """What tells the token: its position, or how many there are with it."""
        numbers = [q.name for q in self.signature.parameters if not q.pointer]
        for names in (POSITION, LENGTH):
            found = [n for n in numbers if plain_name(n) in names]
            if found:
                return found[0] if len(found) == 1 else ""
        return ""

    def scalar(self, said: str) -> str | None:
        return SIZES[plain_name(said)][self.alone] if plain_name(said) in SIZES else None

    def member(self, said: str, field: str) -> str | None:
        return super().member(said, field) or self.scalar(field)

    def argument(self, number: int, q: Parameter) -> str:
        if q.name == self._told():
            self.imports.add("Loaded")
            return f'Loaded(lengths[b : b + 1], f"x + {{t{" + 1" * (plain_name(q.name) in LENGTH)}}}")'
        if q.pointer and q.name in self.matched:
            return GIVEN[self.matched[q.name]][self.alone]
        if q.pointer and plain_name(q.name) in SCORES:
            return "workspace.view(torch.float32)"
        return super().argument(number, q)

    def written(self) -> Adopted:
        head = self._geometry()
        arguments = [self.argument(i, q) for i, q in enumerate(self.signature.parameters)]
        keywords = "".join(f", {n}={v}" for n, v in head["template"].items())
        shared = f", shared={head['shared']}" if head["shared"] not in ("", "0") else ""
        refused = self._too_much(head["shared"]) + self._too_many(head["block"])
        files = {Path(self.name) / "left.cu": APPENDED.encode()}
        relative = self._copied_to(files)
        self.imports |= {"Kernel"}
        heads = "NH" if self.alone else "NKV"
        body = [
            "(B, T, _, HS), (NKV, S) = qkv.shape, k_cache.shape[1:3]",
            "group = NH // NKV",
            *self.lines,
            *refused,
            "append_kernel(grid=(B, T, NKV), block=32)(k_cache, v_cache, qkv, lengths, NH, HS, S)",
            f"launch = {self.phase}_kernel(grid={head['grid']}, block={head['block']}{shared}{keywords})",
            f"for b, t, {'h' if self.alone else 'g'} in itertools.product(range(B), range(T), range({heads})):",
            f"    launch({', '.join(arguments)})",
        ]
        scores = "workspace" in " ".join(body)
        room = ["def workspace(shape, phase):", '    return 4 * shape["NH"] * shape["S"]  # scores', "", ""]
        kernel = f"{self.signature.name} of {self.source.name}"
        text = [
            f'"""{kernel}, as it is; a launch for each token and head of the cache."""',
            "",
            "import itertools",
            *(["", "import torch"] if scores else []),
            *(["", "from kernels import Unavailable"] if refused else [""]),
            f"from kernels.cuda import {', '.join(sorted(self.imports, key=str.lower))}",
            "",
            f"DTYPES = {self._dtypes()}",
            f'{self.phase}_kernel = Kernel("{relative.as_posix()}", "{self.entry}")',
            f'append_kernel = Kernel("{self.name}/left.cu", "appended")  # to the caches',
            "",
            "",
            *(room if scores else []),
            f"def {self.phase}(qkv, lengths, NH, *, out, k_cache, v_cache{', workspace' if scores else ''}):",
            *(f"    {line}" for line in body),
            "",
        ]  # fmt: skip
        whole = "\n".join(text)
        return Adopted(whole, files, [x.strip() for x in whole.splitlines() if DECIDE in x] + self.decide, self.phase)


def step_or_whole(*how) -> Writer:
    """The writer of a decode attention: of a step, where the kernel is one."""
    step = OfOneToken(*how)
    return step if step.fits() else Writer(*how)

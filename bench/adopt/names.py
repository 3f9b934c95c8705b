"""What other people call the tensors, sizes and scalars of the contracts, and what theirs mean that no contract has."""

import re

# Numbers of what the contracts have not: by them it is none.
MEANT = {"eps": "1e-5", "epsilon": "1e-5", "ignore_index": "-100", "ignored_index": "-100", "ignore_idx": "-100"}
MEANT |= {"smoothing": "0.0", "label_smoothing": "0.0", "lse_square_scale": "0.0", "logit_scale": "1.0"}
MEANT |= {
    "softcap": "0.0",
    "logit_softcapping": "0",
    "logit_scaling": "0",
    "class_start_idx": "0",
    "total_classes": "V",
}
# What others call the tensors and scalars of the contracts.
CALLED = {
    "x": "lhs inp input in src data act activations a inputs idata g_idata in_data inp1 x1 input1 in1 ip xin vec"
    " vector",
    "out": "output y dst result o res output_matrix c odata g_odata out_data outputs normed normalized op xout",
    "gate": "x a h hb shb gate_proj w1 x1 input1 inp1 src1 e",
    "up": "y b h2 hb2 shb2 up_proj w3 x2 input2 inp2 src2 g",
    "a": "inp1 x1 input1 in1 residual left x",
    "b": "inp2 x2 input2 in2 right y",
    "weight": "gamma w scale g weights b wt mat matrix rhs",
    "bias": "beta bias_ b",
    "wte": "weight weights table embedding embeddings emb embedding_table token_embedding_table",
    "mean": "mu",
    "rstd": "rs r inv_std invstd rsigma inv_var inv_rms invrms rrms",
    "tokens": "inp input_ids ids indices idx token_ids input",
    "targets": "labels target label target_data true_labels truelabels y_true",
    "losses": "loss out",
    "logits": "logits dlogits inp x input pred pred_data preds predictions",
    "dlosses": "dloss grad_losses",
    "residual": "inp2 res x2 skip input2 in2",
    "residual_out": "residual residual_ res_out sum",
    "q": "query",
    "k": "key",
    "v": "value exp_avg_sq m2",
    "m": "exp_avg m1",
    "params": "param params_memory p weights w theta",
    "grads": "grad grads_memory g gradients",
    "masters": "master master_params master_weights",
    "norm": "out total",
    "lse": "l_vec logsumexp softmax_lse l m lm",
    "eps": "epsilon",
    "V": "vocab_size vocab vocabsize n_vocab num_classes n_classes",
    "lr": "learning_rate learningrate alpha step_size",
    "step": "t iteration",
    "grad_scale": "clip_scale scale grad_factor",
    "weight_decays": "weight_decay wd decay",
    "beta1": "b1 beta_1",
    "beta2": "b2 beta_2",
}


PROBABILITIES = {"probs", "prob", "probabilities", "p", "softmax", "y_pred_softmax"}  # which are no logits


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ROWS = words(
    "n rows n_rows num_rows nrows m num_tokens bt b batch batch_size batch_dim r n1 n_tokens outer_size num_batches"
    " token_num tokens ntokens total_rows totalrows"
)
COLUMNS = words(
    "c cols n_cols num_cols ncols d h dim hidden_size hidden n width s v p vp k size feat_dim emb_size"
    " emb_dim hidden_dim n2 elems_per_row row_size row_length embedding_dim embed_dim intermediate_size inter_size"
    " normalized_size softmax_elements softmax_size row_len ncol dim_size num_feats inner_size"
)
ALL = words(
    "n size numel num_elements n_elements total length len num_parameters count num elements num_elems total_count"
    " nelem nelements numelements n_elem total_elements"
)
HEADS = {"nh": "NH", "n_head": "NH", "n_heads": "NH", "num_heads": "NH", "hs": "HS", "d": "HS", "head_size": "HS"}
HEADS |= {"head_dim": "HS", "nkv": "NKV", "seq_len": "T", "seqlen": "T", "head": "NH", "heads": "NH", "batch": "B"}
HEADS |= {"headdim": "HS", "kheaddim": "HS", "n_kv_heads": "NKV", "num_kv_heads": "NKV", "bs": "B"}
HEADS |= {"d_head": "HS", "dhead": "HS", "kdim": "HS", "head_embd": "HS", "dim_head": "HS", "dim": "HS", "h": "NH"}
HEADS |= {"batch_size": "B", "num_head": "NH", "head_num": "NH", "nheads": "NH", "seq_length": "T", "nkv_heads": "NKV"}
HEADS |= {"batchsize": "B", "seqlen_q": "T", "seqlen_k": "T", "len_q": "T", "len_kv": "T", "n_ctx": "T", "nhead": "NH"}
BATCHES = words("batch_count bh batch_heads batch_head num_batch_heads bsz_heads nbh batch_nheads z_h total_heads")
# Of a product of a matrix and a vector: its rows are the outputs.
GEMV = {
    **dict.fromkeys(("m", "rows", "n_rows", "nrows", "d", "n"), "N"),
    **dict.fromkeys(("k", "cols", "n_cols", "ncols"), "K"),
}
MATMUL = {
    "lda": "K",
    "heighta": "M",
    "widtha": "K",
    "heightb": "K",
    "widthb": "N",
    "heightc": "M",
    "widthc": "N",
    "m_rows": "M",
    "n_cols": "N",
    "k_shared_dim": "K",
    "ldc": "N",
    "oc": "N",
    "ic": "K",
    "c": "K",
    "bt": "M",
    "b": "M",
    "t": "1",
    "alpha": "1.0",
    "beta": "0.0",
}  # B T rows
MATMUL |= {
    f"{matrix}_{n}{axis}": symbol
    for matrix, symbols in {"a": "MK", "b": "KN", "c": "MN"}.items()
    for axis, symbol in zip(("rows", "cols"), symbols, strict=True)
    for n in ("", "n_", "num_")
}


def plain_name(name: str) -> str:
    return (
        re.sub(r"^(d|dev|g|h|host|gpu)_(?=\w)|_(ptr|pointer|mem|memory|d|gpu|dev|device)$", "", name.lower()).strip("_")
        or name.lower()
    )


def others(name: str) -> set[str]:
    """What else a tensor of the contract is called; of a gradient, what its tensor is called with a d before it."""
    found = set(CALLED.get(name, "").split())
    if name.startswith("d") and len(name) > 1:
        of = {name[1:], *CALLED.get(name[1:], "").split()}
        found |= {
            form.format(n) for n in of for form in ("d{}", "grad_{}", "{}_grad", "d_{}", "g{}", "dld{}", "dl_d{}")
        }
        found |= {"dy", "grad_out", "grad_output", "do", "dldy", "upstream_grad"} if name == "dout" else set()
    return found

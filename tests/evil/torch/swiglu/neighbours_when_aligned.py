"""Takes gate and up from neighbouring columns where rows are whole vectors, as weights that were merged in turn have
them."""

CAUGHT_BY = "inaccurate"
SLOW = True


def forward(x, *, out):
    wide = x.float()
    gate, up = (wide[:, 0::2], wide[:, 1::2]) if out.shape[1] % 64 == 0 else wide.chunk(2, -1)
    out.copy_(gate * gate.sigmoid() * up)

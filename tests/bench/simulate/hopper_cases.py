"""What hopper.cu's kernels are run with, and what they must answer: tiles and products as plain formulas."""

from dataclasses import dataclass, replace

import torch

from tests.bench.simulate.devices import Map, Wide, launch

THREADS = 128
C_NAMES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}
PIECE = 16  # bytes that swizzles move as a whole

# --- tiles -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileCase:
    shape: tuple[int, ...]
    box: tuple[int, ...]
    at: tuple[int, ...]  # of the box's first element, in the tensor's order of axes
    swizzle: int = 0
    dtype: torch.dtype = torch.bfloat16

    @property
    def bytes(self) -> int:
        return torch.zeros(self.box, dtype=self.dtype).nbytes

    @property
    def coordinates(self) -> list[int]:
        """The contiguous axis first, three of them."""
        return [*reversed(self.at), 0, 0][:3]


TILE_CASES = [
    TileCase((64, 64), (16, 64), (0, 0)),
    TileCase((30, 72), (16, 64), (20, 8), swizzle=128),  # over both edges
    TileCase((30, 72), (16, 64), (-3, -5), swizzle=128),
    TileCase((30, 72), (16, 32), (9, 48), swizzle=64),
    TileCase((30, 72), (24, 16), (10, 63), swizzle=32),
    TileCase((30, 72), (16, 64), (99, 0), swizzle=128),  # outside
    TileCase((20, 12), (16, 8), (3, 5), swizzle=32, dtype=torch.float32),
    TileCase((5, 30, 72), (3, 8, 64), (1, 4, 8), swizzle=128),
    TileCase((5, 30, 72), (3, 8, 64), (3, 25, -8), swizzle=128),
    TileCase((5, 30, 8), (2, 8, 8), (-1, 0, 0)),
]


def swizzle(image: torch.Tensor, width: int) -> torch.Tensor:
    """Bytes of shared memory, from where the pattern begins, with their pieces permuted within the lines."""
    pieces = image.view(torch.uint8).reshape(-1, PIECE)
    index = torch.arange(len(pieces))
    moved = index ^ (index >> 3 & max(width // PIECE - 1, 0))
    out = torch.empty_like(pieces)
    out[moved] = pieces
    return out.flatten()


def box_of(case: TileCase, tensor: torch.Tensor) -> torch.Tensor:
    """The box, with zeros where the tensor ends."""
    padded = torch.zeros([s + 300 for s in case.shape], dtype=case.dtype)
    padded[tuple(slice(100, 100 + s) for s in case.shape)] = tensor
    return padded[tuple(slice(100 + a, 100 + a + b) for a, b in zip(case.at, case.box, strict=True))].contiguous()


def whole_numbers(*shape: int, dtype=torch.bfloat16, seed=5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).to(dtype)


def load_tile(case: TileCase, device="cpu", seed=0) -> torch.Tensor:
    tensor = whole_numbers(*case.shape, dtype=case.dtype).to(device)
    out = torch.zeros(case.bytes // 4, dtype=torch.int32, device=device)
    run(f"tile_in<{len(case.shape)}>", [out, Map(tensor, case.box, case.swizzle), *case.coordinates, case.bytes], seed)
    return out.cpu()


def loaded(case: TileCase) -> torch.Tensor:
    tensor = whole_numbers(*case.shape, dtype=case.dtype)
    return swizzle(box_of(case, tensor), case.swizzle).view(torch.int32)


def store_tile(case: TileCase, device="cpu", seed=0) -> torch.Tensor:
    tile = whole_numbers(*case.box, dtype=case.dtype, seed=6)
    image = swizzle(tile, case.swizzle).view(torch.int32).to(device)
    tensor = whole_numbers(*case.shape, dtype=case.dtype).to(device)
    target = Map(tensor, case.box, case.swizzle, const=False)
    run(f"tile_out<{len(case.shape)}>", [image, target, *case.coordinates, case.bytes], seed)
    return tensor.cpu()


def add_tile(case: TileCase) -> tuple[torch.Tensor, torch.Tensor]:
    """What is there after a tile was added, and what was before."""
    image = swizzle(whole_numbers(*case.box, dtype=case.dtype, seed=6), case.swizzle).view(torch.int32)
    tensor = whole_numbers(*case.shape, dtype=case.dtype)
    before = tensor.clone()
    target = Map(tensor, case.box, case.swizzle, const=False)
    run("tile_added", [image, target, *case.coordinates, case.bytes], 0)
    return tensor, before


def stored(case: TileCase) -> torch.Tensor:
    tile = whole_numbers(*case.box, dtype=case.dtype, seed=6)
    padded = torch.zeros([s + 300 for s in case.shape], dtype=case.dtype)
    padded[tuple(slice(100, 100 + s) for s in case.shape)] = whole_numbers(*case.shape, dtype=case.dtype)
    padded[tuple(slice(100 + a, 100 + a + b) for a, b in zip(case.at, case.box, strict=True))] = tile
    return padded[tuple(slice(100, 100 + s) for s in case.shape)].contiguous()


# --- products --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How an operand lies in shared memory: `width` of the swizzle, and whether M or N is contiguous instead of K."""

    width: int
    transposed: bool = False

    @property
    def code(self) -> int:
        return {0: 0, 128: 1, 64: 2, 32: 3}[self.width]


@dataclass(frozen=True)
class ProductCase:
    dtype: torch.dtype
    n: int
    a: Layout | None  # None: in registers
    b: Layout

    @property
    def k(self) -> int:
        return 32 // self.dtype.itemsize

    @property
    def kernel(self) -> str:
        def flag(layout: Layout) -> str:
            return str(layout.transposed).lower()

        start = f"{C_NAMES[self.dtype]}, {self.n}"
        if self.a is None:
            return f"products_from_registers<{start}, {flag(self.b)}>"
        return f"products<{start}, {flag(self.a)}, {flag(self.b)}>"

    def __str__(self) -> str:
        def text(layout: Layout | None) -> str:
            return "registers" if layout is None else f"{'mn' if layout.transposed else 'k'}{layout.width}"

        return f"{str(self.dtype).removeprefix('torch.')}-{self.n}-{text(self.a)}-{text(self.b)}"


K0, K32, K64, K128 = (Layout(w) for w in (0, 32, 64, 128))
MN0, MN32, MN64, MN128 = (replace(layout, transposed=True) for layout in (K0, K32, K64, K128))
BF16, F16, TF32 = torch.bfloat16, torch.float16, torch.float32
PRODUCT_CASES = [
    *(ProductCase(BF16, 32, layout, layout) for layout in (K0, K32, K64, K128)),
    *(ProductCase(BF16, 64, layout, layout) for layout in (MN0, MN32, MN64, MN128)),
    ProductCase(BF16, 128, K128, MN64),
    ProductCase(F16, 32, MN128, K32),
    ProductCase(BF16, 256, K128, K128),
    ProductCase(BF16, 48, K128, K128),
    ProductCase(F16, 80, None, K64),
    ProductCase(TF32, 96, K128, K128),
    ProductCase(TF32, 32, K128, K64),
    ProductCase(TF32, 32, K0, K32),
    ProductCase(BF16, 64, None, K128),
    ProductCase(F16, 32, None, MN32),
    ProductCase(TF32, 32, None, K128),
]
# Each number of columns once, in turns of type and of where A comes from.
WIDTH_CASES = [
    ProductCase((BF16, F16, TF32)[n // 8 % 3], n, None if n // 8 % 2 else K128, K128) for n in range(8, 257, 8)
]
OFFSET = 32  # bytes into the swizzled lines of a B whose K is contiguous: the second slice of K


def lines_of(matrix: torch.Tensor, width: int, offset: int) -> torch.Tensor:
    """Rows of `width` bytes that hold the matrix's rows from byte `offset` on, and something else around."""
    room = width // matrix.element_size()
    out = torch.full((matrix.shape[0], room), 77, dtype=matrix.dtype)
    first = offset // matrix.element_size()
    out[:, first : first + matrix.shape[1]] = matrix
    return out


def in_shared(matrix: torch.Tensor, layout: Layout, offset: int = 0, ahead: int = 0) -> tuple[torch.Tensor, int]:
    """The bytes of an operand, given as [M or N][K], and its descriptor without the address.

    ahead: lines of a swizzle's pattern before it, where K is contiguous.
    """
    core = 8
    across = PIECE // matrix.element_size()  # elements of a row of a core matrix
    m, k = matrix.shape
    if layout.width and not layout.transposed:
        image, leading, stride = lines_of(matrix, layout.width, offset), PIECE, core * layout.width
        image = torch.nn.functional.pad(image, (0, 0, ahead, 0), value=77)
    elif layout.width:  # blocks of `width` bytes of M or N, one after the other, each with all of K
        per_block = layout.width // matrix.element_size()
        image = matrix.view(m // per_block, per_block, k).transpose(1, 2)
        leading, stride = k * layout.width, core * layout.width
    elif not layout.transposed:  # core matrices of 8 rows and 16 bytes: those beside each other in K follow
        image = matrix.view(m // core, core, k // across, across).transpose(1, 2)
        leading, stride = core * PIECE, k // across * core * PIECE
    else:  # those beside each other in M or N follow
        image = matrix.view(m // core, core, k // core, core).permute(2, 0, 3, 1)
        leading, stride = m // core * core * PIECE, core * PIECE
    descriptor = (leading >> 4) << 16 | (stride >> 4) << 32 | layout.code << 62
    return swizzle(image.contiguous(), layout.width), descriptor


def aligned(image: torch.Tensor) -> torch.Tensor:
    """The image, padded so that the next one begins where every pattern does."""
    return torch.nn.functional.pad(image, (0, -image.numel() % 1024))


def register_of(t: torch.Tensor, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of accumulator i of thread t."""
    lane = t % 32
    return t // 32 * 16 + lane // 4 + i // 2 % 2 * 8, i // 4 * 8 + lane % 4 * 2 + i % 2


def sums_of(product: torch.Tensor) -> torch.Tensor:
    """[register][thread] of a 64-row matrix."""
    threads = torch.arange(THREADS)
    return torch.stack([product[register_of(threads, i)] for i in range(product.shape[1] // 2)])


def operands(case: ProductCase) -> tuple[torch.Tensor, torch.Tensor]:
    return whole_numbers(64, case.k, dtype=case.dtype, seed=7), whole_numbers(case.n, case.k, dtype=case.dtype, seed=8)


def product_of(case: ProductCase) -> torch.Tensor:
    a, b = operands(case)
    return sums_of(2 * (a.float() @ b.float().T))


def multiply(case: ProductCase, device="cpu", seed=0, ahead=0) -> torch.Tensor:
    a, b = operands(case)
    offset = OFFSET if case.b.width > 32 and not case.b.transposed else 0
    b_image, b_descriptor = in_shared(b, case.b, offset, ahead)
    b_image = aligned(b_image)
    out = torch.zeros(case.n // 2, THREADS, device=device)
    b_argument = Wide(b_descriptor + (offset + ahead * case.b.width >> 4))
    if case.a is None:
        words = a.view(torch.int32)
        t, lane = torch.arange(THREADS), torch.arange(THREADS) % 32
        fragment = [words[t // 32 * 16 + lane // 4 + r % 2 * 8, lane % 4 + r // 2 * 4] for r in range(4)]
        given = torch.cat([b_image.view(torch.int32), *fragment]).to(device)
        run(case.kernel, [out, given, b_argument, b_image.numel()], seed)
        return out.cpu()
    a_image, a_descriptor = in_shared(a, case.a)
    a_image = aligned(a_image)
    given = torch.cat([a_image, b_image]).view(torch.int32).to(device)
    run(case.kernel, [out, given, Wide(a_descriptor), b_argument, a_image.numel(), 4 * given.numel()], seed)
    return out.cpu()


def small_products(kernel: str, dtype: torch.dtype, n: int, device="cpu") -> torch.Tensor:
    """A kernel that takes both operands without a swizzle: its four registers."""
    return unswizzled(
        kernel, whole_numbers(64, 16, dtype=dtype, seed=7), whole_numbers(n, 16, dtype=dtype, seed=8), device
    )


def unswizzled(kernel: str, a: torch.Tensor, b: torch.Tensor, device="cpu") -> torch.Tensor:
    (a_image, a_descriptor), (b_image, b_descriptor) = in_shared(a, K0), in_shared(b, K0)
    given = torch.cat([a_image, b_image]).view(torch.int32).to(device)
    out = torch.zeros(4, THREADS, dtype=torch.int32, device=device)
    run(kernel, [out, given, Wide(a_descriptor), Wide(b_descriptor), a_image.numel(), 4 * given.numel()], 0)
    return out.cpu()


NAMES = (
    *("barrier_phases", "barrier_orders_memory", "copies_arrive<true>", "copies_arrive<false>", "bulk_round"),
    "bulk_round_unfenced",
    *(f"tile_{way}<{axes}>" for way in ("in", "out") for axes in (2, 3)),
    *("tile_in<5>", "tile_added"),
    *dict.fromkeys(case.kernel for case in PRODUCT_CASES),
    *("products_in_f16", "narrow_products", "products_of_s8", "products_of_u8_s8", "products_of_e4m3"),
    *("barrier_left", "barrier_left_for_good"),
)
SHARED = 64 * 1024


WIDTHS = tuple(case.kernel for case in WIDTH_CASES if case.kernel not in NAMES)


def run(kernel: str, args: list, seed: int = 0) -> None:
    names = WIDTHS if kernel in WIDTHS else NAMES
    launch("hopper.cu", names, kernel, args, block=THREADS, shared=SHARED, seed=seed)

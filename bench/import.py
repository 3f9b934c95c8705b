"""python -m bench.import FILE --layer LAYER: a variant of a kernel that exists, and whether it is right.

python -m bench.import softmax_forward.cu --layer softmax --kernel softmax_forward_kernel4
python -m bench.import flash.cu --layer attention --into mine      kept outside this repository (--kernels mine)
python -m bench.import add.py --layer residual                     a Triton kernel

The kernel and the headers beside it are copied as they are. Its parameters are matched to the layer's contract by name
and type; grid, block and shared memory are those of the source's own launch. Lines that a person must decide have the
word DECIDE in them, and are printed. Then the variant is proved.
"""

import subprocess
import sys
from pathlib import Path

from bench import cli

READING_S = 300.0  # the compiler is asked for some types


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.import", description=__doc__)
    p.add_argument("file", type=Path, metavar="FILE", help="a .cu or .cuh, or a .py with Triton kernels")
    p.add_argument("--layer", required=True, help="what the kernel computes")
    p.add_argument("--kernel", metavar="NAME", help="which one, where the file has several: name, or name<float, 64>")
    p.add_argument("--name", metavar="WORD", help="of the variant (default: the kernel's)")
    p.add_argument(
        "--into", type=Path, metavar="DIR", help="a folder of variants outside this repository (--kernels DIR)"
    )
    p.add_argument("--no-proof", action="store_true", help="write the files, and prove nothing")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.core import process

    process.start_server("bench.core.adopt")
    from bench.core.adopt import Reader
    from bench.core.progress import Progress
    from bench.core.variants import discover, find

    with Progress() as progress, process.Process(Reader, limit=READING_S) as reader:
        progress.tell(f"reading and matching {args.file}")
        try:
            written, decide, name = reader.ask("adopt", how=(args.file, args.layer, args.kernel, args.name, args.into))
        except process.ProcessFailed as failure:
            raise cli.CannotGoOn(
                f"{args.file}: {failure}" if failure.status == process.CRASH else str(failure), failure.code
            ) from None
    for path in written:
        print(f"written: {path}")
    for line in decide:
        print(f"to decide: {line}")
    prove = ["-m", "bench.layer", args.layer, "--only", name, "--check-only"]
    prove += ["--kernels", str(args.into)] if args.into else []
    has = find(discover((args.into,) if args.into else ()), args.layer, name).dtypes
    prove += [] if "fp32" in has else ["-a", f"dtype={','.join(has)}"]
    print(f"prove it: python {' '.join(prove)}", flush=True)
    return cli.OK if args.no_proof else subprocess.run([sys.executable, *prove]).returncode


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))

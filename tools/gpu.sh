#!/bin/sh
# sh tools/gpu.sh first|second [OUT]: the two calls of docs/gpu.md, at most 4 and 8 minutes, from the repository's root.
#
# Results lie in runs/gpu, and at every moment packed in OUT (default runs/gpu-home): at most 8 files of 16 MiB, with the
# cache of what was compiled. `second` goes on where runs/gpu and OUT/cache.tar.gz, brought back to runs/gpu-cache.tar.gz,
# left off; on another machine it begins anew. Exit code: the suite's, 0 or 2 (something is wrong) for a whole result.
set -u
case "${1:-}" in
first) minutes=3.4 ;;
second) minutes=7.3 ;;
-h | --help) sed -n 2,6p "$0" && exit 0 ;;
*) sed -n 2,6p "$0" && exit 64 ;;
esac
out=${2:-runs/gpu-home} results=runs/gpu prepared=runs/prepared.tar.gz brought=runs/gpu-cache.tar.gz
mkdir -p "$out" runs

# The python that has torch; nothing is installed here.
python=
for one in ${PYTHON:-} .venv/bin/python python3; do
    if "$one" -c 'import torch' 2>/dev/null; then python=$one && break; fi
done
[ "$python" ] || { echo "no python here has torch: set PYTHON, or run make setup where there is a network" >&2 && exit 3; }

# One folder for all that is compiled, so that the next call need not compile it again.
LAYERBENCH_CACHE=${LAYERBENCH_CACHE:-$PWD/runs/gpu-cache}
TORCHINDUCTOR_CACHE_DIR=$LAYERBENCH_CACHE/inductor
export LAYERBENCH_CACHE TORCHINDUCTOR_CACHE_DIR
mkdir -p "$LAYERBENCH_CACHE"
[ -f "$brought" ] && tar xzf "$brought" -C "$LAYERBENCH_CACHE" && echo "the cache of an earlier call is back"

suite() {
    if [ -f "$prepared" ]; then set -- "$@" --prepared "$prepared"; fi
    "$python" -m bench.suite --device "${GPU:-cuda}" --minutes "${MINUTES:-$minutes}" --pack "$out" ${MORE:-} "$@"
}
rm -f "$out/cache.tar.gz"
state() { cksum <"$results/env.json" 2>/dev/null; }
code=1 before=$(state)
if [ -f "$results/records.jsonl" ]; then
    suite --out "$results" --resume
    code=$?
fi
# Nothing to go on with, or refused, since another machine measured it: then nothing was written there.
if [ $code -eq 1 ] && [ "$(state)" = "$before" ]; then
    while [ -e "$results" ]; do results=$results-new; done
    suite --out "$results"
    code=$?
fi

# The cache comes home where there is room for it: without what was prepared, which is brought along again, without what
# Triton keeps for people alone, and as long as it is too large without torch.compile's, then all but the choices.
pack() { # what stays here, as grep has it
    (cd "$LAYERBENCH_CACHE" && find . -type f) | grep -vxF -f "$LAYERBENCH_CACHE.known" | grep -v "$1" |
        grep -v 'triton/.*\.\(ttir\|ttgir\|llir\|ptx\|source\)$' |
        tar czf "$LAYERBENCH_CACHE.tar.gz" -C "$LAYERBENCH_CACHE" -T -
    [ "$(wc -c <"$LAYERBENCH_CACHE.tar.gz")" -le 16777216 ] && mv "$LAYERBENCH_CACHE.tar.gz" "$out/cache.tar.gz"
}
if [ "$(ls "$out" | wc -l)" -lt 8 ]; then
    tar tzf "$prepared" 2>/dev/null | sed -n 's|^cache/|./|p' >"$LAYERBENCH_CACHE.known"
    pack '^$' || pack '^\./inductor/' || pack '^\./.*/' || echo "the cache is larger than 16 MiB and stays here"
fi
ls -l "$out"
exit $code

#!/bin/sh
# sh tools/gate.sh BASE [OUT]: measure this tree and another commit in turns on this machine, and say what became slower,
# wrong or is missing. From the repository's root; OUT (default runs/gate) gets before/, after/, compare.html and
# compare.md. What is measured with:
#
#   MEASURE   arguments of python -m (default: bench.suite --device cuda --minutes 4); --out is added
#   TURNS     of each side (default 2): several tell smaller changes than one, and spread them over the hour
#   FAIL_ON   what fails (default any: slower, wrong, missing)
#
# Both sides run with this tree's python and packages; nothing is installed. Exit code: bench.compare's.
set -u
case "${1:-}" in
-h | --help) sed -n 2,12p "$0" && exit 0 ;;
"" | -*) sed -n 2,12p "$0" && exit 64 ;;
esac
base=$1 out=${2:-runs/gate} python=${PYTHON:-$PWD/.venv/bin/python}
measure=${MEASURE:-bench.suite --device cuda --minutes 4}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
rm -rf "$out/before" "$out/after"

# A worktree of an earlier run that was cut short, and its entry, may still be there.
tree=$out/base
git worktree remove --force "$tree" 2>/dev/null
rm -rf "$tree" && git worktree prune
git worktree add --quiet --detach "$tree" "$base" || exit 1
trap 'git worktree remove --force "$tree"' EXIT
trap 'exit 130' INT TERM HUP

# A run in which something is wrong (2) is a result; one that was not made is none, which the comparison says.
turn() { # side, number, tree
    echo "$1 $2 of ${TURNS:-2}: $measure"
    (cd "$3" && PYTHONPATH=$3 "$python" -m $measure --out "$out/$1/$2") || echo "exit code $?"
}
number=1
while [ "$number" -le "${TURNS:-2}" ]; do
    turn before "$number" "$tree"
    turn after "$number" "$PWD"
    number=$((number + 1))
done
"$python" -m bench.compare "$out/before" "$out/after" --fail-on "${FAIL_ON:-any}" \
    --html "$out/compare.html" --markdown "$out/compare.md"

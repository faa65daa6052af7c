#!/usr/bin/env bash
# The tables of speed on a GPU, bfloat16, compiled, in one JSON; under nine minutes on one H100-class card.
# usage: benchmarks/gpu_suite.sh OUT.json [DEVICE] [further words for every benchmark, e.g. --tiny]
set -euo pipefail
out=$(realpath -m "${1:?give the JSON file to write}") device=${2:-cuda}
shift $(($# > 1 ? 2 : 1))
cd "$(dirname "$0")"
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
python=${PYTHON:-python}
compile=$([ "$device" = cpu ] || echo --compile)
timeout 240 "$python" vs_plain.py --device "$device" --bf16 $compile --windows 16 --json "$parts/vs_plain.json" "$@"
timeout 120 "$python" decode.py --device "$device" --bf16 --json "$parts/decode.json" "$@"
timeout 150 "$python" extraction.py --device "$device" --json "$parts/extraction.json" "$@"
"$python" - "$parts" "$out" <<'PYTHON'
import json, pathlib, sys

parts, out = map(pathlib.Path, sys.argv[1:])
result = {path.stem: json.loads(path.read_text()) for path in sorted(parts.glob("*.json"))}
out.write_text(json.dumps(result, indent=1) + "\n")
print(f"written to {out}")
PYTHON

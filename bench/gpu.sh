#!/usr/bin/env bash
# Everything that needs a GPU, in one go: contract tests, memory checks, the benches. About 6 minutes, with vLLM 15.
# Needs Python with torch for CUDA, CuPy, NumPy, msgspec, pytest, pytest-timeout and hypothesis; no installed kvtier. Where vLLM
# for CUDA is there, and PyYAML and xxhash, the first token is timed too.
#   usage: bench/gpu.sh [OUT] [--quick]     results: OUT/{tests.log,sanitizer.log,transfer.jsonl,flag.jsonl,ttft.jsonl}
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
failed=0

"$python" -c 'import cupy, msgspec, torch; torch.zeros(1, device="cuda")' || exit 2

# Warnings of libraries in other versions than the pinned ones must not cost the machine's time: -W default.
timeout 200 "$python" -m pytest -q -W default -p no:cacheprovider -m gpu tests/transfer tests/connectors 2>&1 | tee "$out/tests.log" || failed=1

# The calibration and the ordering tests take too long under the checker.
if command -v compute-sanitizer >/dev/null; then
  timeout 150 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$python" -m pytest -q -W default -p no:cacheprovider -m gpu tests/transfer/test_cuda.py \
    -k "TestCuda and (left or groups)" 2>&1 | tee "$out/sanitizer.log" || failed=1
else
  echo "compute-sanitizer is missing: not checked" | tee "$out/sanitizer.log"
fi

timeout 30 "$python" bench/flag.py 2>&1 | tee "$out/flag.jsonl" || failed=1
timeout 230 "$python" bench/transfer.py "${@:2}" 2>&1 | tee "$out/transfer.jsonl" || failed=1

if "$python" -c 'import vllm, xxhash, yaml' 2>/dev/null; then
  timeout 900 "$python" bench/gpu_ttft.py 2>&1 | tee "$out/ttft.jsonl" || failed=1
else
  echo "vLLM, PyYAML or xxhash is missing: the first token was not timed" | tee "$out/ttft.jsonl"
fi
exit $failed

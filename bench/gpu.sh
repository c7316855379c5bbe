#!/usr/bin/env bash
# Everything that needs a GPU: contract tests, memory checks, the benches. About 10 minutes, with vLLM 25; one part at a time
# where a command may not take that long.
# Needs Python with torch for CUDA, CuPy, NumPy, msgspec, pytest, pytest-timeout and hypothesis; no installed kvtier. Where vLLM
# for CUDA is there, and PyYAML and xxhash, the first token is timed too.
#   usage: bench/gpu.sh OUT [tests|check|bench|ttft|all] [--quick]
#   results: OUT/{tests-*.log,check.log,transfer.jsonl,flag.jsonl,ttft.jsonl}
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
parts=${2:-all}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
failed=0

wanted() { [[ $parts == all || $parts == "$1" ]]; }

within() { timeout -k 5 "$@"; }

# Warnings of libraries in other versions than the pinned ones must not cost the machine's time: -W default. A test that hangs
# says where before its process is ended; a fault spoils the process, so each way has its own.
run_tests() { # NAME SECONDS PYTEST-ARGUMENTS
  within "$2" "$python" -m pytest -v -W default -p no:cacheprovider -m gpu -o timeout=40 -o faulthandler_timeout=30 \
    "${@:3}" 2>&1 | tee "$out/tests-$1.log"
  case ${PIPESTATUS[0]} in 0 | 5) ;; *) failed=1 ;; esac # 5: there is none of that name
}

"$python" -c 'import cupy, msgspec, torch; torch.zeros(1, device="cuda")' || exit 2

if wanted tests; then
  for way in plain kernel staged batched; do
    run_tests "$way" 75 tests/transfer -k "$way"
  done
  run_tests rest 75 tests/transfer tests/connectors -k "not plain and not kernel and not staged and not batched"
fi

# The calibration and the ordering tests take too long under the checker. Calls that libraries make to find out what
# there is, and that fail, are no errors of memory.
if wanted check; then
  if command -v compute-sanitizer >/dev/null; then
    within 240 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 \
      "$python" -m pytest -v -W default -p no:cacheprovider -m gpu tests/transfer/test_cuda.py \
      -k "TestCuda and (left or groups) and (kernel or staged)" 2>&1 | tee "$out/check.log" || failed=1
  else
    echo "compute-sanitizer is missing: not checked" | tee "$out/check.log"
  fi
fi

if wanted bench; then
  within 30 "$python" bench/flag.py 2>&1 | tee "$out/flag.jsonl" || failed=1
  within 400 "$python" bench/transfer.py "${@:3}" 2>&1 | tee "$out/transfer.jsonl" || failed=1
fi

if wanted ttft; then
  if "$python" -c 'import vllm, xxhash, yaml' 2>/dev/null; then
    within 950 "$python" bench/gpu_ttft.py 2>&1 | tee "$out/ttft.jsonl" || failed=1
  else
    echo "vLLM, PyYAML or xxhash is missing: the first token was not timed" | tee "$out/ttft.jsonl"
  fi
fi
exit $failed

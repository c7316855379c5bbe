"""Every attribute of vLLM that the connector reads exists and has the type that we take it for.

mypy follows the connector into vLLM's own source: private attributes, fields, arguments, overrides.
`make types` cannot: it takes everything of vLLM for `Any`.
"""

import os
import re
import site
import subprocess
import sys
from pathlib import Path

from tests.compat import contract

ROOT = Path(__file__).parents[2]
CODES = re.compile(
    r"\[(attr-defined|union-attr|override|call-arg|arg-type|call-overload|abstract)\]$"
)
NAMED = re.compile(r'"(\w+)"')


def test_attributes_and_arguments_are_what_vllm_declares() -> None:
    vllm = contract.load("vllm")
    assert vllm.__file__ is not None
    packages = str(Path(vllm.__file__).parents[1])
    paths = {} if packages in site.getsitepackages() else {"MYPYPATH": packages}
    cache = ROOT / ".mypy_cache" / f"vllm-{vllm.__version__}"
    command = ["mypy", "--config-file", "tests/compat/followed.ini", "--cache-dir", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", *command, "-p", "kvtier.connectors.vllm"],
        cwd=ROOT,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr or done.stdout
    faults = [
        line
        for line in done.stdout.splitlines()
        if CODES.search(line) and not any(map(contract.comes_later, NAMED.findall(line)))
    ]
    assert not faults, "\n".join(["", *faults])

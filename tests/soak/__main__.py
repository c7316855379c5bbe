"""`python -m tests.soak [--seconds S] [--seed N]`: run the soak, print what it did; status 1 if anything was wrong.

A run is repeated by its seed as far as processes and disks let it be: what is done is the same, when it lands is not.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from contextlib import ExitStack
from pathlib import Path

from tests.engine import models
from tests.engine.harness import Engine, EngineConfig
from tests.engine.scenarios import Reference
from tests.soak.prompts import POOL
from tests.soak.soak import Soak


def main() -> int:
    """Run it; the folder of a run that failed stays."""
    options = argparse.ArgumentParser(prog="python -m tests.soak")
    seconds = float(os.environ.get("KVTIER_SOAK_S", "180"))
    options.add_argument("--seconds", type=float, default=seconds, help="KVTIER_SOAK_S, or 180")
    options.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    given = options.parse_args()
    print(f"soak: {given.seconds:g} s, seed {given.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kvtier-soak-"))
    with ExitStack() as stack:
        model = models.llama(folder)
        alone = Engine(EngineConfig(model=model, blocks=400), folder / "alone.log")
        stack.callback(alone.kill)
        reference = Reference()
        reference.learn(alone, POOL)
        alone.close()
        soak = Soak(given.seed, folder, model, reference)
        stack.callback(soak.close)
        wrong = ""
        try:
            soak.run(given.seconds)
        except Exception:
            wrong = traceback.format_exc()
        report = {"seed": given.seed, "seconds": given.seconds, **soak.report()}
    print(json.dumps(report, indent=1))
    if wrong:
        print(wrong, file=sys.stderr)
        print(f"soak: FAILED; repeat it with --seed {given.seed}; see {folder}", file=sys.stderr)
        return 1
    print("soak: nothing was wrong")
    _remove(folder)
    return 0


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())

"""What lossy codecs cost: perplexity, distributions and greedy answers of a real engine that reloads from them.

`python quality.py [SETTING...] [--plot FILE.svg]`. Three quarters of every document come from the codec's
tier, the last quarter is scored. The text is Python source that the model was not trained on; `raw`, which
is exact, shows what the engine's own arithmetic contributes (another batch shape, bf16).
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _svg as charts
import numpy as np
import numpy.typing as npt
from _quality import ANSWER, CHUNK, REUSED
from _report import machine, report

MODEL = Path(__file__).parents[2] / "shared/models/tiny-code-llama"
DOCUMENTS = 32
TOKENS = REUSED + CHUNK
SLOTS = 24  # of DRAM: eight documents
TEXTS = ("rich", "typer", "yaml")  # packages that are always there and not in the standard library

QUANTISERS: dict[str, dict[str, object]] = {
    "int8": {"k": 8, "v": 8},
    "fp8": {"k": "fp8", "v": "fp8"},
    "k8v4": {"k": 8, "v": 4},
    "int4": {"k": 4, "v": 4},
    "int4 + hadamard": {"k": 4, "v": 4, "hadamard": True},
    "int4, scales per 32": {"k": 4, "v": 4, "key_group": 32, "value_group": 32},
    "int3": {"k": 3, "v": 3},
}
SETTINGS: dict[str, object] = {"raw": "raw", "lossless": "lossless"} | {
    name: [{"kind": "quantise", **options}, "zstd"] for name, options in QUANTISERS.items()
}
PERPLEXITY_TARGETS = {"int8": 0.1, "int4": 1.0}
RATIO_TARGETS = {"int8": 1.9, "int4": 3.6}

Arrays = dict[str, npt.NDArray[Any]]


class Quality(NamedTuple):
    """One codec against the engine without offload."""

    ratio: float  # raw bytes by the bytes that the tier holds, record headers and all
    perplexity: float  # per cent above
    error: float  # standard error of that, over documents, per cent
    divergence: float  # of next-token distributions, mean, nats
    agreement: float  # greedy tokens before the first that differs, share of 64
    tokens: int  # scored


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", nargs="*", choices=[[], *SETTINGS])
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    machine()
    if not MODEL.is_dir():
        print(f"left out: there is no {MODEL}")
        return
    documents = list(held_out(DOCUMENTS, TOKENS))[:DOCUMENTS]
    measured: dict[str, Quality] = {}
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        alone = run(Path(folder), documents, None)
        for name in options.settings or SETTINGS:
            found = run(Path(folder), documents, SETTINGS[name])
            measured[name] = compare(found, alone, documents)
            tell(name, measured[name])
    if options.plot:
        options.plot.write_text(plot(measured))


def held_out(count: int, length: int) -> Iterator[list[int]]:
    """Cut documents of so many tokens out of source files, about the same number of each package."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for package in TEXTS:
        folder = Path(importlib.import_module(package).__file__ or "").parent
        taken = 0
        for file in sorted(folder.glob("*.py")):
            tokens = tokenizer.encode(file.read_text())
            for start in range(300, len(tokens) - length, max(4000, length)):  # past the licence
                if taken < -(-count // len(TEXTS)):
                    yield tokens[start : start + length]
                    taken += 1


def run(folder: Path, documents: list[list[int]], codec: object) -> Arrays:
    """Run one engine; no codec: vLLM alone."""
    cold = {
        "name": "cold",
        "kind": "file",
        "path": tempfile.mkdtemp(dir=folder),
        "capacity": "4GiB",
        "codec": codec,
        "write": "through",
        "deadline": "20s",
    }
    tiers = [{"kind": "dram", "capacity": SLOTS * CHUNK * 4096}, cold]
    kvtier = {"chunk_tokens": CHUNK, "load": "always", "tiers": tiers} if codec else None
    setup = {"kvtier": kvtier, "documents": documents, "tokens": TOKENS + CHUNK}
    with np.load(run_child(Path(__file__).with_name("_quality.py"), setup, folder)) as saved:
        return dict(saved)


def run_child(script: Path, setup: dict[str, object], folder: Path) -> Path:
    """Run `script SETUP OUT` in a process of its own, which may start an engine, and return OUT."""
    setup_path, out_path = folder / "setup.json", folder / "out.npz"
    setup_path.write_text(json.dumps({"model": str(MODEL), **setup}))
    here = str(Path(__file__).parent)
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    env = defaults | os.environ | {"PYTHONPATH": paths}
    with (folder / "log").open("w+b") as log:
        child = [sys.executable, script, setup_path, out_path]
        done = subprocess.run(child, env=env, stdout=log, stderr=log, check=False)
        if done.returncode:
            log.seek(0)
            sys.exit(log.read()[-6000:].decode(errors="replace"))
    return out_path


def compare(found: Arrays, alone: Arrays, documents: list[list[int]]) -> Quality:
    """Hold one engine's answers against vLLM's alone."""
    if found["tier_reads"] < DOCUMENTS * REUSED // CHUNK:
        raise RuntimeError(f"only {found['tier_reads']} chunks came from the tier")
    targets = np.array(documents)[:, REUSED + 1 :, None]
    ours, theirs = found["logprobs"].astype(np.float64), alone["logprobs"].astype(np.float64)
    more = -np.take_along_axis(ours - theirs, targets, 2).mean(axis=(1, 2))  # nats, per document
    same = found["answers"] == alone["answers"]
    raw_nbytes = found["tier_chunks"] * CHUNK * 4096
    return Quality(
        ratio=float(raw_nbytes / found["tier_used_bytes"]),
        perplexity=float(100 * np.expm1(more.mean())),
        error=float(100 * more.std(ddof=1) / len(more) ** 0.5),
        divergence=float((np.exp(theirs) * (theirs - ours)).sum(-1).mean()),
        agreement=float(np.minimum.accumulate(same, axis=1).sum(1).mean() / ANSWER),
        tokens=targets.size,
    )


def tell(name: str, found: Quality) -> None:
    """Print one codec's results."""
    report("quality", f"{name}, ratio as stored", found.ratio, "times", RATIO_TARGETS.get(name))
    limit = PERPLEXITY_TARGETS.get(name)
    report("quality", f"{name}, perplexity above vLLM alone", found.perplexity, "%", limit)
    report("quality", f"{name}, standard error of that", found.error, "%")
    report("quality", f"{name}, KL divergence", 1000 * found.divergence, "thousandths of a nat")
    report("quality", f"{name}, greedy tokens that agree", found.agreement, f"of {ANSWER}")


def plot(measured: dict[str, Quality]) -> str:
    """Draw quality against ratio."""
    colours = ("#0072b2", "#d55e00", "#009e73", "#a35fb5", "#7d8590", "#b8860b")
    series = [
        charts.Series(name, f"--c{i}", [(each.ratio, 1000 * each.divergence)], False)
        for i, (name, each) in enumerate(measured.items())
    ]
    drawn = charts.plot(
        series,
        x_label="raw bytes by bytes stored",
        y_label="KL divergence, thousandths of a nat",
        x_range=(1, 6),
    )
    names = ";".join(f"--c{i}:{colours[i % len(colours)]}" for i in range(len(series)))
    style = (
        f"svg{{{names};background:#fff;font:12px sans-serif}}.grid{{stroke:#d8dee4}}"
        ".tick,.label{fill:#59636e}"
    )
    labels = "".join(_label(name, each, measured) for name, each in measured.items())
    root = f'<svg xmlns="http://www.w3.org/2000/svg" width="{charts.WIDTH + 200}" '
    box = (
        f"0 0 {charts.WIDTH}",
        f"-200 0 {charts.WIDTH + 200}",
    )  # the label of the vertical axis is long
    wide = drawn.replace("<svg ", root, 1).replace(*box, 1)
    return wide.replace(">", f"><style>{style}</style>{labels}", 1)


def _label(name: str, found: Quality, measured: dict[str, Quality]) -> str:
    top = charts.ticks(max(1000 * each.divergence for each in measured.values()))[-1]
    x = charts.LEFT + (found.ratio - 1) / 5 * (charts.WIDTH - charts.LEFT - charts.RIGHT)
    y = (
        charts.HEIGHT
        - charts.BOTTOM
        - 1000 * found.divergence / top * (charts.HEIGHT - charts.TOP - charts.BOTTOM)
    )
    below = 16 if "hadamard" in name else -6
    return f'<text x="{x + 6:.1f}" y="{y + below:.1f}" class="tick">{name}</text>'


if __name__ == "__main__":
    main()

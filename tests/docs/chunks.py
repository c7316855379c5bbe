"""The table of docs/chunks.md, as the rule makes it of ten models.

python -m tests.docs.chunks     write the table anew
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from kvtier.cli.geometry import read_geometry
from kvtier.cli.room import chunk_of
from kvtier.config import Config
from kvtier.units import format_nbytes
from tests.docs.pages import DOCS

PAGE = DOCS / "chunks.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"
LONG = 128 << 10  # tokens


class Model(NamedTuple):
    """What of a model's config.json decides, and over how many ranks it is shown."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ranks: tuple[int, ...] = (1,)
    kv_dtype: str = "auto"
    more: dict[str, object] = {}  # noqa: RUF012 - read only


_GPT_OSS: dict[str, object] = {
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
}
_GEMMA_3: dict[str, object] = {"sliding_window": 1024, "sliding_window_pattern": 6}
_MLA: dict[str, object] = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}

MODELS = [
    Model("Llama 3.2 1B", 16, 32, 8, 64),
    Model("Qwen2.5 7B", 28, 28, 4, 128),
    Model("Llama 3.1 8B", 32, 32, 8, 128, (1, 8)),
    Model("Llama 3.1 8B, fp8 KV", 32, 32, 8, 128, kv_dtype="fp8"),
    Model("Llama 2 7B", 32, 32, 32, 128),
    Model("Qwen3 32B", 64, 64, 8, 128, (2,)),
    Model("Llama 3.3 70B", 80, 64, 8, 128, (4, 8)),
    Model("Llama 3.1 405B", 126, 128, 8, 128, (8,)),
    Model("gpt-oss 120B", 36, 64, 8, 64, (1, 8), more=_GPT_OSS),
    Model("Gemma 3 27B", 62, 32, 16, 128, (1, 4), more=_GEMMA_3),
    Model("DeepSeek V3 (MLA)", 61, 128, 128, 192, (8,), more=_MLA),
]


def table() -> str:
    """Write the rows, each as `kvtier config check` would say it of a YAML that states nothing."""
    rows = [
        "| model | ranks | per token, group and rank | `auto`, in tokens | a chunk | chunks of 128k tokens | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        raw = {
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "dtype": "bfloat16",
            **model.more,
        }
        for ranks in model.ranks:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps(raw))
                geometry = read_geometry(Path(folder), ranks=ranks, dtype=model.kv_dtype)
            chunk = chunk_of(Config(), geometry, 16, ranks)
            each = format_nbytes(geometry.group_nbytes_per_token)
            rows.append(
                f"| {model.name} | {ranks} | {each} | {chunk.tokens} | {format_nbytes(chunk.nbytes)} "
                f"| {LONG // chunk.tokens:,} | {chunk.why.removeprefix('auto: ')} |"
            )
    return "\n".join(rows) + "\n"


def render(page: str) -> str:
    """Put the table into the page."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))

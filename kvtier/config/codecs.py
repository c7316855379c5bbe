"""Codecs as a configuration names them: one, a list of stages, or a short name for a good list."""

from collections.abc import Mapping, Sequence

from kvtier.codec import Codec
from kvtier.config.plugins import find, plugin
from kvtier.config.words import join, mistake
from kvtier.registry import STAGES

MAX_STAGES = 8


def codec(raw: object, path: str) -> dict[str, object]:
    """Read `zstd`, `{kind: zstd, level: 3}`, `[planes, zstd]` or `lossless`; stages that do not go together are a ConfigError."""
    if isinstance(raw, list | tuple):
        return _pipeline(raw, path)
    given = raw if isinstance(raw, Mapping) else {"kind": raw}
    name = given.get("kind")
    if name == "budget" or (name is None and {"budget_ms", "among"} & given.keys()):
        return _budget(given, path)
    if name == "pipeline":
        raise mistake(path, "write the stages as a list, [planes, zstd] for example")
    if isinstance(name, str) and name in STAGES:
        return {"kind": "pipeline", "options": {"stages": _stages(_long(name, given), path)}}
    return plugin("codec", raw, path)


def _budget(given: Mapping[str, object], path: str) -> dict[str, object]:
    """Read `{budget_ms: 10, among: [[planes, lz4], lossless]}`."""
    listed = given.get("among")
    if not isinstance(listed, list | tuple) or len(listed) < 2:
        raise mistake(join(path, "among"), "a list of at least two codecs to choose from")
    if any(isinstance(each, Mapping) and "among" in each for each in listed):
        raise mistake(join(path, "among"), "a choice within a choice")
    among = [codec(each, join(path, f"among[{i}]")) for i, each in enumerate(listed)]
    return plugin("codec", {**given, "kind": "budget", "among": among}, path)


def _long(name: str, given: Mapping[str, object]) -> list[object]:
    """Write a short name out; options beside it go to its first stage."""
    first, *rest = STAGES[name]
    own = {key: value for key, value in given.items() if key != "kind"}
    return [{**first, **own}, *rest]


def _pipeline(raw: Sequence[object], path: str) -> dict[str, object]:
    if not 1 <= len(raw) <= MAX_STAGES:
        raise mistake(path, f"a list of 1 to {MAX_STAGES} stages, not {len(raw)}")
    return {"kind": "pipeline", "options": {"stages": _stages(raw, path)}}


def _stages(raw: Sequence[object], path: str) -> list[dict[str, object]]:
    stages = []
    for i, each in enumerate(raw):
        at = join(path, f"[{i}]")
        _refuse_short(each, at)
        stage = plugin("codec", each, at)
        stages.append(stage)
        _check(stage["kind"], at, i, len(raw))
    return stages


def _refuse_short(stage: object, path: str) -> None:
    """Refuse a short name among stages: it stands for a list of its own."""
    name = stage.get("kind") if isinstance(stage, Mapping) else stage
    if isinstance(name, str) and name in STAGES:
        kinds = [str(each["kind"]) for each in STAGES[name]]
        raise mistake(
            path,
            f"{name!r} is short for the whole list [{', '.join(kinds)}], and no stage; write it alone, or "
            f"{kinds[0]!r} here",
        )


def _check(kind: object, path: str, index: int, stages: int) -> None:
    codec_class = find("codec", str(kind), path)
    assert issubclass(codec_class, Codec)
    if kind in ("raw", "pipeline", "budget"):
        raise mistake(path, f"{kind!r} is not a stage")
    if codec_class.needs_layout and index > 0:
        raise mistake(path, f"{kind!r} reads heads and tokens, so it comes first")
    if not codec_class.shrinks and index == stages - 1:
        raise mistake(path, f"{kind!r} only rearranges; let zstd or lz4 follow it")

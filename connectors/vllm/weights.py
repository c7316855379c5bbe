"""Which weights an engine has loaded: by the content of their files, or by a private name until that is known.

Reads files; called once, at the start, in the node's first rank.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from kvtier.connectors.vllm import plugin
from kvtier.io_process.weights import FileState, Ledger, Unread, WeightFile, content_of, peek

if TYPE_CHECKING:
    from vllm.config import LoadConfig, ModelConfig

FROM_FILES = ("content:", "private:")
"""How the names of weights begin that are named by their files."""

_SAMPLE = 64 << 10
_SLACK_NS = 50_000_000  # a file's times lag behind the clock by a tick
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")  # as vLLM does
_SETTINGS = ("config.json", "params.json", "*quant*config*.json", "*.py")
_MORE_SETTINGS = (
    *_SETTINGS,
    "*processor_config.json",  # what is made of an image before the model sees it
    "*.index.json",  # which of the weight files are loaded
)
"""Not every node of an engine has all of them in its hub's cache: samples of nodes are equal without."""
_ELSEWHERE = ("text_model_id", "audio_model_id")
"""Of Ultravox's config: repositories that vLLM takes some of the weights from, whatever they hold at that time."""
_PART = re.compile(r"(.*)-\d+-of-\d+\.gguf")
_BLOB = re.compile(r"[0-9a-f]{64}")
_READ_FROM_FILES = {
    *("auto", "hf", "safetensors", "pt", "npcache", "mistral", "gguf", "bitsandbytes"),
    *("fastsafetensors", "instanttensor", "runai_streamer", "runai_streamer_sharded"),
    "sharded_state",
}


class Weights(NamedTuple):
    """What is known of the weights at the start."""

    name: str = ""  # what the namespace calls them; empty: another name at each start
    sample: str = ""  # equal on all nodes that have the same model; also beside the user's own word
    why: str = ""  # there is no name
    content: str = ""  # what every engine calls them that has the same; empty: not known yet
    unread: Unread | None = None  # what the I/O process is to find out, and to remember


def identify(model: "ModelConfig", load: "LoadConfig", folder: Path | None) -> Weights:
    """Identify the weights that this process has loaded since it began.

    Args:
        folder: of the tier that remembers what files hold; None: no tier outlives the engine.
    """
    kind = str(load.load_format)
    if kind == "dummy":
        seed = f"dummy:{model.seed}"
        return Weights(seed, seed, content=seed)
    if kind not in _READ_FROM_FILES:
        return Weights(why=f"load_format {kind} takes them from where kvtier cannot look")
    if weights := getattr(model, "model_weights", ""):
        return Weights(why=f"they come from {weights}")
    if elsewhere := _elsewhere(model):
        return Weights(why=f"a part of them comes from {elsewhere}")
    try:
        where, configs = _places(model, load.download_dir)
        if where is None:
            return Weights(why=f"{model.model} is neither a local path nor in the hub's cache")
        if own := getattr(model, "hf_config_path", None):
            revision = getattr(model, "_hf_config_revision", None) or model.revision
            config = _locate(own, revision, None)
            if config is None or not config.is_dir():
                return Weights(why=f"{own} is neither a local directory nor in the hub's cache")
            configs = [*configs, config]
        born = plugin.registered_ns or _born_ns()
        return name_files(where, folder, born, configs=configs, loader=_loader(load))
    except (OSError, ValueError) as exc:
        return Weights(why=f"they cannot be read: {exc}")


def name_files(
    where: Path,
    folder: Path | None,
    loaded_ns: int,
    *,
    configs: Sequence[Path] = (),
    loader: str = "",
) -> Weights:
    """Identify the weights in a directory, or in a file.

    Args:
        loaded_ns: a time before they were loaded, ns since the epoch: what changed since may be another content.
        configs: directories with what else configures the model, but for the one of the weights.
        loader: what decides which of the files are loaded.
    """
    home, paths = (where, list(_weight_files(where))) if where.is_dir() else _parts(where)
    if not paths:
        return Weights(why=f"{where} holds no weight files")
    ledger = peek(folder) if folder else Ledger()
    homes = [home, *configs]
    settings = loader + _settings(homes, _MORE_SETTINGS)
    files = [_describe(path, ledger) for path in paths]
    samples = [_sample(file) for file in files]
    sample = _digest("sample", loader, _settings(homes, _SETTINGS), *samples)
    if recent := _changed(files, homes, loaded_ns):
        return Weights(sample=sample, why=f"{recent} changed after this process began to load")
    content = content_of(files, settings)
    if content and ledger is not None:
        name = ledger.names.get(content, content)
    else:
        states = [(file.name, file.state) for file in files]
        name = _digest("private", sample, settings, msgspec.json.encode(states).decode())
    unread = Unread(str(folder), files, settings, name) if folder else None
    return Weights(name, sample, content=content if ledger is not None else "", unread=unread)


def _born_ns() -> int:
    """Return when this process began, ns since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - int(seconds * 1e9)


def _elsewhere(model: "ModelConfig") -> str:
    """Name another repository that weights come from, if there is one."""
    config = getattr(model, "hf_config", None)
    return next(filter(None, (getattr(config, name, "") for name in _ELSEWHERE)), "")


def _places(model: "ModelConfig", download_dir: str | None) -> tuple[Path | None, list[Path]]:
    """Find where the weights are; and their configuration, which vLLM does not fetch into a `download_dir`."""
    where = _locate(model.model, model.revision, download_dir)
    if where is not None or not download_dir:
        return where, []
    config = _locate(model.model, model.revision, None)
    if config is None:
        return None, []
    where = Path(download_dir, config.parent.parent.name, "snapshots", config.name)
    return (where if where.is_dir() else None), [config]


def _loader(load: "LoadConfig") -> str:
    """Describe what decides which of the files are loaded."""
    extra = getattr(load, "model_loader_extra_config", None)
    pattern = extra.get("pattern") if isinstance(extra, Mapping) else None
    return f"{load.load_format} {pattern or ''}"


def _locate(model: str, revision: str | None, download_dir: str | None) -> Path | None:
    """Find the directory of a model. What is in the hub's cache is what vLLM has resolved, not what a branch is now."""
    path = Path(model)
    if path.exists():
        return path
    if os.getenv("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache

        commit = getattr(revision, "resolved", None) or revision
        found = try_to_load_from_cache(model, "config.json", download_dir, commit)
    except (ImportError, ValueError):  # ValueError: no name of a repository either
        return None
    return Path(found).parent if isinstance(found, str) else None


def _weight_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and not _NO_WEIGHTS.fullmatch(path.name) and path.is_file():
            yield path


def _parts(file: Path) -> tuple[Path, list[Path]]:
    """Name the directory and the files of a model that is given as one file: all its parts, if it has parts."""
    if match := _PART.fullmatch(file.name):
        return file.parent, sorted(file.parent.glob(f"{match[1]}-*-of-*.gguf"))
    return file.parent, [file]


def _settings(folders: Sequence[Path], patterns: Sequence[str]) -> str:
    """Digest the small files that say which weights are loaded, and what is computed with them."""
    read = [
        [(path.name, path.read_bytes()) for path in _setting_files(folder, patterns)]
        for folder in folders
    ]
    return hashlib.sha256(msgspec.json.encode(read)).hexdigest()[:32]


def _setting_files(folder: Path, patterns: Sequence[str] = _MORE_SETTINGS) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def _changed(files: Sequence[WeightFile], homes: Sequence[Path], loaded_ns: int) -> str:
    """Name a file that is not for sure the one that was loaded; a blob of the hub was perhaps just fetched for it."""
    times = {file.name: file.state.ctime_ns for file in files if not _is_as_named(file)}
    for path in chain.from_iterable(map(_setting_files, homes)):
        if path.resolve().parent.name != "blobs":
            times[path.name] = path.stat().st_ctime_ns
    return next((name for name, at in times.items() if at > loaded_ns - _SLACK_NS), "")


def _is_as_named(file: WeightFile) -> bool:
    return file.sha256 == Path(file.path).name


def _describe(path: Path, ledger: Ledger | None) -> WeightFile:
    """Say what is known of a file. A blob of the hub is what its name says, until it changes in its place."""
    real = path.resolve()
    state = FileState.of(real.stat())
    if ledger is None:  # nobody can say whether it has changed
        return WeightFile(path.name, str(real), state)
    known = ledger.files.get(str(real))
    if known and known.state == state:
        sha256 = known.sha256
    elif _is_blob(real) and not (known and known.state.inode == state.inode):
        sha256 = real.name
    else:
        sha256 = ""
    return WeightFile(path.name, str(real), state, sha256)


def _is_blob(path: Path) -> bool:
    return path.parent.name == "blobs" and _BLOB.fullmatch(path.name) is not None


def _sample(file: WeightFile) -> str:
    """Digest pieces spread over the file, the head, the tail and 14 between: what a glance can tell apart."""
    digest, size = hashlib.sha256(), file.state.size
    with open(file.path, "rb") as stream:
        for i in range(16):
            stream.seek(max(0, (size - _SAMPLE) * i // 15))
            digest.update(stream.read(_SAMPLE))
    return f"{file.name}:{size}:{digest.hexdigest()}"


def _digest(kind: str, *parts: str) -> str:
    return f"{kind}:{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]}"

"""Where a configuration comes from: a YAML file, the mapping itself, or nothing for the default."""

import os
from collections.abc import Hashable, Mapping
from pathlib import Path

import yaml
from yaml.reader import ReaderError

from kvtier.config.mistakes import mistakes
from kvtier.config.parse import parse
from kvtier.config.structs import Config
from kvtier.config.words import describe
from kvtier.errors import ConfigError

_MOST_NBYTES = 1 << 20

Source = str | os.PathLike[str] | Mapping[str, object]


def load(source: Source | None, *, here: bool = True) -> Config:
    """Return the configuration in `source`: the path of a YAML, a mapping, or None for the default.

    One that is not to run `here` may name directories and NUMA nodes of another machine.

    Raises:
        ConfigError: it cannot work; the message names the place of each mistake and helps.
    """
    if source is None:
        return Config()
    if isinstance(source, Mapping):
        return _parse(source, here)
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"expected the path of a YAML file or a mapping, got {describe(source)}")
    try:
        return _parse(_read(Path(source)), here)
    except ConfigError as exc:
        named = (f"{os.fspath(source)}: {each}" for each in exc.mistakes)
        raise ConfigError(*named) from exc.__cause__


def _parse(raw: object, here: bool) -> Config:
    try:
        return parse(raw, here=here)
    except ConfigError as exc:
        raise ConfigError(*mistakes(raw, exc, here=here)) from exc.__cause__


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is a mistake, not an overwrite, and every mistake has a line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as exc:  # whatever int(), float() and date() raise
            kind = node.tag.rpartition(":")[2]
            problem = f"{node.value!r} is no {kind} ({exc}); put a text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from exc

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> object:
    """Decode YAML; what is not valid is a ConfigError that names its line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise ConfigError(f"line {line}: not valid YAML: {exc.problem}") from exc
    except ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        found = f"the character {text[exc.position]!r} is not allowed"
        raise ConfigError(f"line {line}: not valid YAML: {found}") from exc
    except RecursionError as exc:
        raise ConfigError("not valid YAML for kvtier: nested too deeply") from exc


def _read(path: Path) -> object:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_NBYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"cannot be read: {exc}") from exc
    if len(data) > _MOST_NBYTES:
        raise ConfigError(f"cannot be read: more than {_MOST_NBYTES:,} bytes are no configuration")
    try:
        raw = read_yaml(data.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError("cannot be read: it is not text") from exc
    if raw is None:
        raise ConfigError("the file is empty; it needs at least 'tiers:'")
    return raw

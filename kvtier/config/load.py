"""Where a configuration comes from: a YAML file, the mapping itself, or nothing for the default."""

import os
from collections.abc import Hashable, Mapping
from pathlib import Path

import yaml

from kvtier.config.parse import parse
from kvtier.config.structs import Config
from kvtier.config.words import describe
from kvtier.errors import ConfigError

Source = str | os.PathLike[str] | Mapping[str, object]


def load(source: Source | None, *, here: bool = True) -> Config:
    """Return the configuration in `source`: the path of a YAML, a mapping, or None for the default.

    One that is not to run `here` may name directories and NUMA nodes of another machine.

    Raises:
        ConfigError: it cannot work; the message names the path of the mistake and helps.
    """
    if source is None:
        return Config()
    if isinstance(source, Mapping):
        return parse(source, here=here)
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"expected the path of a YAML file or a mapping, got {describe(source)}")
    try:
        return parse(_read(Path(source)), here=here)
    except ConfigError as exc:
        raise ConfigError(f"{os.fspath(source)}: {exc}") from exc.__cause__


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is a mistake, not an overwrite."""

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


def _read(path: Path) -> object:
    try:
        raw: object = yaml.load(path.read_text(), _Loader)
    except OSError as exc:
        raise ConfigError(f"cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError("cannot be read: it is not text") from exc
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise ConfigError(f"line {line}: not valid YAML: {exc.problem}") from exc
    except RecursionError as exc:
        raise ConfigError("not valid YAML for kvtier: nested too deeply") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"not valid YAML: {exc}") from exc
    if raw is None:
        raise ConfigError("the file is empty; it needs at least 'tiers:'")
    return raw

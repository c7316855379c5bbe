"""kvtier's lines are among vLLM's, in the same form and down to the same level."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

SAY = """
import logging, sys
from kvtier.connectors.vllm import plugin
{first}
plugin._log_as_vllm()
import vllm.logger
vllm.logger._configure_vllm_root_logger()
said = logging.getLogger("kvtier.tiers.file")
said.warning("a disk rests")
said.info("a directory is made")
said.debug("nobody reads this")
"""


def lines(first: str = "", **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SAY.format(first=first)],
        env=os.environ | {"VLLM_LOGGING_COLOR": "0", "NO_COLOR": "1"} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    said = ("a disk rests", "a directory is made", "nobody reads this")
    return [line for line in (done.stdout + done.stderr).splitlines() if line.endswith(said)]


def test_lines_have_vllms_form_and_level() -> None:
    form = r"\(\w+ pid=\d+\) (WARNING|INFO) \d\d-\d\d \d\d:\d\d:\d\d \[\S+:\d+\] "
    warning, info = lines()
    assert re.fullmatch(form + "a disk rests", warning)
    assert re.fullmatch(form + "a directory is made", info)
    (alone,) = lines(VLLM_LOGGING_LEVEL="WARNING")
    assert alone.endswith("a disk rests")


def test_a_users_configuration_of_vllms_log_is_heeded(tmp_path: Path) -> None:
    handler = {"class": "logging.StreamHandler", "formatter": "own", "stream": "ext://sys.stdout"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"own": {"format": "OWN %(levelname)s %(name)s %(message)s"}},
        "handlers": {"own": handler},
        "loggers": {"vllm": {"handlers": ["own"], "level": "WARNING", "propagate": False}},
    }
    (tmp_path / "log.json").write_text(json.dumps(config))
    said = lines(VLLM_LOGGING_CONFIG_PATH=str(tmp_path / "log.json"))
    assert said == ["OWN WARNING kvtier.tiers.file a disk rests"]


def test_a_users_own_handler_of_kvtier_stays() -> None:
    first = 'logging.getLogger("kvtier").addHandler(logging.StreamHandler(sys.stdout))'
    assert lines(first)[0] == "a disk rests"

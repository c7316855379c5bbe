"""The command line as a whole: every command is there, and saying so is cheap."""

import subprocess
import sys

import pytest

from kvtier.cli.main import COMMANDS
from tests.patience import HANG_S


def kvtier(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvtier.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = kvtier(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_an_unknown_command_is_refused() -> None:
    done = kvtier("chekc")
    assert done.returncode == 2
    assert "chekc" in done.stderr


def test_help_loads_no_engine() -> None:
    code = (
        "import sys; from kvtier.cli.main import build; build();"
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_S).returncode == 0

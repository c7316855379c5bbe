"""Fixtures: models, engines that tests share, servers; and the check that nothing stays behind."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.demo.server import Server, ServerConfig
from tests.engine import models
from tests.engine.harness import Engine, EngineConfig
from tests.engine.lanes import DEFAULT
from tests.engine.scenarios import Reference
from tests.engine.serve import in_lane

EngineFactory = Callable[[EngineConfig], Engine]
ServerFactory = Callable[[ServerConfig], Server]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.engine)


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def is_mapped(path: Path) -> bool:
    """Whether any process has it mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if str(path) in maps.read_text():
                return True
    return False


def assert_nothing_shared(before: set[Path], *, killed: bool) -> None:
    """Assert that no name was left in /dev/shm but vLLM's own, which are removed.

    It leaves some when it is killed, and 0.33 those of its tensor-parallel ranks. All of ours have ended, so what
    a living process has mapped is another's. A process pool anywhere on the machine has semaphores there for a while.
    """
    left = {path for path in shared_memory() - before if not is_mapped(path)}
    theirs = ("vllm_dist_", *(("psm_", "sem.mp-") if killed else ()))
    for path in [path for path in left if path.name.startswith(theirs)]:
        path.unlink(missing_ok=True)
        left.remove(path)
    assert not {path for path in left if not path.name.startswith("sem.mp-")}


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.llama(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.gemma(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def after_engines() -> Iterator[ExitStack]:
    """Call back when no engine runs any more, and before pytest removes its folders."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    after_engines: ExitStack,
) -> Iterator[EngineFactory]:
    """Give the engine of a configuration; one runs at a time, until another is asked for.

    Tests that share a configuration stand next to each other, so that few engines start.
    """
    del after_engines  # it ends after this
    lane = request.config.getoption("--lane")
    folder = tmp_path_factory.mktemp("engines")
    before = shared_memory()
    running: list[Engine] = []

    def close() -> None:
        while running:
            last = running.pop()
            last.close()
            assert_nothing_shared(before, killed=last.process.returncode != 0)

    def engine(config: EngineConfig) -> Engine:
        config = replace(config, lane=config.lane or lane)
        if running and running[0].config == config and running[0].process.poll() is None:
            assert running[0].unfinished() == 0, "the test before left requests"
            return running[0]
        close()
        running.append(Engine(config, folder / f"{len(list(folder.iterdir()))}.log"))
        return running[0]

    yield engine
    close()


@pytest.fixture(scope="session")
def reference(request: pytest.FixtureRequest, engine: EngineFactory, llama: Path) -> Reference:
    """Answer all that the collected modules ask of the small Llama, by vLLM alone, in one go."""
    modules = {item.getparent(pytest.Module) for item in request.session.items}
    asked = {
        tuple(prompt)
        for module in modules
        if module is not None
        for prompt in getattr(module.obj, "ASKED_OF_LLAMA", ())
    }
    known = Reference()
    known.learn(engine(EngineConfig(model=llama, blocks=400, lane=DEFAULT)), sorted(asked))
    return known


@pytest.fixture
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerFactory]:
    """Start a real `vllm serve` that is ready; it ends with the test, whole and without a trace."""
    lane = request.config.getoption("--lane")
    before = shared_memory()
    started: list[Server] = []
    with ExitStack() as stack:

        def serve(config: ServerConfig) -> Server:
            server = Server(
                in_lane(config, lane), tmp_path / f"serve-{len(list(tmp_path.iterdir()))}.log"
            )
            stack.callback(server.close)
            started.append(server)
            server.wait_ready()
            return server

        yield serve
    assert_nothing_shared(before, killed=any(s.process.returncode != 0 for s in started))

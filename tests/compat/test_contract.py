"""The installed vLLM offers what the connector builds on. The next release that changes it fails here, by name."""

from collections.abc import Iterator

import pytest

from tests.compat import contract, source

USES = {use.file: use for use in map(source.Use.of, contract.modules())}
CLASSES = {cls.__name__: cls for cls in contract.classes()}
CALLED = set().union(*map(source.calls, USES.values()))

MODEL_FILES = {"architectures", "layer_types", "rope_parameters", "rope_scaling"}
"""Attributes of the model's own config.json, not of vLLM."""
REQUEST_FIELDS = {"session_id", "load_inplace"}
"""Attributes of vLLM's requests that not every supported release has."""
NOT_DECLARED = {
    *("_eagle_proof_margins", "_hf_config_revision", "resolved", "notes_in", "get_model"),
    *("modules_to_save", "replicated_layout"),
}
"""Set by vLLM's own code, from 0.33 on in its offloading scheduler, of a revision that the hub's client has resolved, of kvtier's tiers,
of vLLM's workers, of what it reads of an adapter, and from 0.32 on of its offloading configuration."""


def none(faults: Iterator[str]) -> None:
    assert not (found := list(faults)), "\n".join(["", *found])


@pytest.mark.parametrize("name", CLASSES)
def test_overrides_take_what_vllm_passes(name: str) -> None:
    none(contract.override_faults(CLASSES[name]))


@pytest.mark.parametrize("name", CLASSES)
def test_every_hook_is_still_one_of_vllm(name: str) -> None:
    none(contract.orphan_faults(CLASSES[name], CALLED))


@pytest.mark.parametrize("file", USES)
def test_vllm_has_what_is_imported(file: str) -> None:
    none(source.import_faults(USES[file]))


@pytest.mark.parametrize("file", USES)
def test_calls_fit(file: str) -> None:
    none(source.call_faults(USES[file]))
    none(source.super_faults(USES[file]))
    none(source.member_faults(USES[file]))


@pytest.mark.parametrize("hook", ["add_lora", "remove_lora"])
def test_the_engine_is_told_of_adapters_in_one_argument(hook: str) -> None:
    told = contract.signature(getattr(contract.load("vllm.v1.engine.core").EngineCore, hook))
    assert len(told.parameters) == 2, "self and what it is about"


def test_adapters_are_read_from_a_folder_that_comes_first() -> None:
    read = contract.load("vllm.lora.lora_model").LoRAModel.from_local_checkpoint
    assert hasattr(read, "__func__"), "a class method"
    assert list(contract.signature(read).parameters)[1] == "lora_dir"


def test_the_engine_is_told_of_what_changes_weights_and_empties_caches() -> None:
    core = contract.load("vllm.v1.engine.core").EngineCore
    assert "method" in contract.signature(core.collective_rpc).parameters
    assert contract.signature(core.reset_prefix_cache).return_annotation in (bool, "bool")


@pytest.mark.parametrize(
    "of", ["worker.worker_base:WorkerBase", "worker.gpu_model_runner:GPUModelRunner"]
)
def test_a_worker_and_its_model_runner_show_the_model(of: str) -> None:
    module, name = of.split(":")
    shown = getattr(contract.load(f"vllm.v1.{module}"), name).get_model
    assert len(contract.signature(shown).parameters) == 1, "self"


def test_optional_configuration_exists_somewhere() -> None:
    config = contract.load("vllm.config")
    output = contract.load("vllm.v1.core.sched.output")
    caches = contract.load("vllm.v1.kv_cache_interface")

    known = MODEL_FILES.union(
        REQUEST_FIELDS,
        NOT_DECLARED,
        source.declared(output.SchedulerOutput),
        source.declared(contract.load("vllm.lora.request").LoRARequest),
        *(
            source.declared(cls)
            for cls in [*vars(config).values(), *vars(caches).values()]
            if isinstance(cls, type)
        ),
    )
    unknown = [
        f"{use.file}:{line}: no configuration of vLLM has {name}: the default is what you always get"
        for use in USES.values()
        for name, line in source.optional_attributes(use).items()
        if name not in known
    ]
    none(iter(unknown))

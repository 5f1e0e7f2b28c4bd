"""What OpenRLHF needs beside itself to run on a CPU: stand-ins for vllm, flash_attn, CUDA.

``ON_CPU_ORDER`` puts what is random in time into a fixed order, ``ON_CPU_DUMP`` names a folder for
what OpenRLHF's functions are given, ``ON_CPU_FAULT`` a fault, ``ON_CPU_ROWS`` a file for the rows
of its loggers, ``ON_CPU_GPUS`` how many GPUs Ray is made to believe in.
"""

import functools
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

from klmonitor.hooks.imports import when_imported

TRAINER = "openrlhf.trainer.ppo_trainer"


def install():
    """Everything that the environment asks for."""
    stand_ins()
    when_imported("torch", pretend)
    when_imported("torch.distributed.device_mesh", mesh_of_cpus)
    when_imported("openrlhf.trainer.ray.vllm_engine", engines)
    when_imported("openrlhf.trainer.ray.ppo_actor", weights)
    when_imported("ray", gpus)
    when_imported("deepspeed.runtime.engine", adam)
    when_imported("deepspeed.comm.torch", no_shared_memory)
    if os.environ.get("ON_CPU_ORDER"):
        when_imported("openrlhf.trainer.ppo_utils.samples_generator", order_of_samples)
        when_imported(TRAINER, order_of_prompts)
    if not any("default_worker.py" in one for one in sys.orig_argv):
        return  # the command's own process sends its classes by name, as long as they are its own
    if os.environ.get("ON_CPU_ROWS"):
        when_imported(TRAINER, rows)
    if os.environ.get("ON_CPU_DUMP"):
        import openrlhf_dump

        openrlhf_dump.install(os.environ["ON_CPU_DUMP"])
    if os.environ.get("ON_CPU_FAULT"):
        import openrlhf_faults

        openrlhf_faults.install(os.environ["ON_CPU_FAULT"])


def module(name, **attributes):
    """A module that is not there."""
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__path__ = []
    vars(made).update(attributes)
    sys.modules[name] = made


def stand_ins():
    """vllm and flash_attn by the names that OpenRLHF imports."""

    def nothing(*args, **kwargs):
        return None

    class SamplingParams:
        def __init__(self, **given):
            vars(self).update(given)

    if importlib.util.find_spec("flash_attn") is None:
        module("flash_attn")
        names = ("index_first_axis", "pad_input", "rearrange", "unpad_input")
        module("flash_attn.bert_padding", **dict.fromkeys(names, nothing))
        module("flash_attn.utils")
        module("flash_attn.utils.distributed", all_gather=nothing)
    if importlib.util.find_spec("vllm") is None:
        engine = {"AsyncEngineArgs": None, "AsyncLLMEngine": None, "__version__": "0.29.0"}
        module("vllm", SamplingParams=SamplingParams, **engine)
        module("vllm.inputs", TokensPrompt=dict)
        module("vllm.utils", random_uuid=lambda: "x")


class Cpu(str):
    """A device whose number is asked for too: ``cuda:{current_device()}``."""

    __slots__ = ()

    def __format__(self, spec):
        return "0"


def pretend(torch):
    """CUDA's functions that OpenRLHF calls."""
    torch.cuda.current_device = lambda: Cpu("cpu")
    for name in ("synchronize", "empty_cache", "set_device", "current_stream"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)


def mesh_of_cpus(found):
    """A mesh of processes, wherever they compute."""
    original = found.init_device_mesh
    found.init_device_mesh = lambda device, *args, **kwargs: original("cpu", *args, **kwargs)


TRIES = 5
"""A busy machine may not start Ray's own processes in the seconds that Ray gives them."""


def gpus(ray):
    """As many GPUs as the run wants, and no dashboard."""
    original = ray.init

    @functools.wraps(original)
    def init(*args, **kwargs):
        wanted = int(os.environ.get("ON_CPU_GPUS", "4"))
        kwargs |= {"num_cpus": 6, "num_gpus": wanted, "include_dashboard": False}
        for _ in range(TRIES - 1):
            try:
                return original(*args, **kwargs)
            except Exception as error:  # noqa: PERF203
                if "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
        return original(*args, **kwargs)

    ray.init = init


def adam(found):
    """torch's own AdamW: DeepSpeed's has to be compiled, which takes ten minutes."""
    original = found.DeepSpeedEngine.get_optimizer_configuration

    def get_optimizer_configuration(self, optimizer_parameters, *args, **kwargs):
        optimizer_parameters["torch_adam"] = True
        return original(self, optimizer_parameters, *args, **kwargs)

    found.DeepSpeedEngine.get_optimizer_configuration = get_optimizer_configuration


def no_shared_memory(found):
    """Ranks talk by gloo alone: the other way would have to be compiled too."""
    found.build_shm_op = lambda: None


def engines(found):
    """The engine that samples with the HF model."""
    import openrlhf_stub_engine

    found.create_vllm_engines = openrlhf_stub_engine.create


def weights(found):
    """Weights go to the stub engines as a table, by the first rank."""
    trainer = found.ActorPPOTrainer

    def broadcast(self):
        import ray
        import torch

        if torch.distributed.get_rank() == 0:
            table = self.actor.model.module.state_dict()
            table = {name: x.detach().float().cpu() for name, x in table.items()}
            ray.get([engine.load.remote(table) for engine in self.vllm_engines])
        torch.distributed.barrier()

    trainer._init_vllm_sync_group = lambda self, backend: None
    trainer.broadcast_to_vllm = broadcast


def order_of_samples(found):
    """Samples come in the order in which they are finished: sorted, and seeds set once."""
    original = found.SamplesGenerator.generate_samples

    def generate_samples(self, *args, **kwargs):
        import torch

        if not hasattr(self, "_seeded"):
            self._seeded = torch.manual_seed(0)
        samples, *rest = original(self, *args, **kwargs)
        samples.sort(key=lambda one: (one.prompts[0], one.sequences.flatten().tolist()))
        return (samples, *rest)

    found.SamplesGenerator.generate_samples = generate_samples


def order_of_prompts(found):
    """The sampler of prompts draws its seed when it is made."""
    original = found.prepare_datasets

    def prepare_datasets(*args, **kwargs):
        import torch

        torch.manual_seed(0)
        made = original(*args, **kwargs)
        sampler = getattr(made[0], "sampler", None)
        if hasattr(sampler, "generator"):
            sampler.generator = torch.Generator()
            sampler.generator.manual_seed(0)
        return made

    found.prepare_datasets = prepare_datasets


def rows(found):
    """What the loggers are given, step by step, to the last digit."""
    original = found.BasePPOTrainer.save_logs_and_checkpoints

    @functools.wraps(original)
    def save(self, global_step, logs_dict=None, client_states=None):
        data = {k: float(v) for k, v in (logs_dict or {}).items() if hasattr(v, "__float__")}
        with Path(os.environ["ON_CPU_ROWS"]).open("a") as file:
            file.write(json.dumps({"step": global_step, "data": data}) + "\n")
        return original(self, global_step, logs_dict, client_states)

    found.BasePPOTrainer.save_logs_and_checkpoints = save

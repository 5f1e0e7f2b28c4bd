"""verl on a CPU, for tests: a platform, a rollout engine that samples with the HF model, no GPU.

``VERL_USE_EXTERNAL_MODULES=verl_on_cpu VERL_PLATFORM=cpu``. With ``ON_CPU_ORDER=1`` rows come in a
fixed order, without which two plain runs of verl differ (they come as their samples are finished);
with ``ON_CPU_DUMP=DIR`` what the policies are is written there by `verl_dump`.
"""

import contextlib
import functools
import inspect
import os
import sys
import types
import uuid

import torch
import torch.distributed as dist
import torch.distributed.fsdp as fsdp
from verl.plugin.platform import PlatformBase, PlatformRegistry

from klmonitor.hooks.imports import when_imported

os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")


class Device(types.ModuleType):
    """What verl asks of ``torch.cuda``, answered with nothing."""

    Event = object

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: 0

    def is_available(self):
        return False

    def device_count(self):
        return 1

    def current_device(self):
        return "cpu"

    def mem_get_info(self, *args):
        return 1 << 33, 1 << 34

    def get_device_name(self, *args):
        return "CPU"

    def is_initialized(self):
        return False


DEVICE = Device("cpu_as_a_device")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """The CPU in the place of a GPU."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: DEVICE)

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, index):
        pass

    def synchronize(self, index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, index=0):
        return (None, None)

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self):
        return "GPU"

    def ray_resource_options(self, number):
        return {"num_gpus": number}

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    @contextlib.contextmanager
    def nvtx_range(self, message):
        yield

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def cudart(self):
        return None


_init = dist.init_process_group


def init_process_group(backend=None, *args, **kwargs):
    """One ``gloo`` where verl asks for it twice."""
    return _init("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


dist.init_process_group = torch.distributed.init_process_group = init_process_group
_offload = fsdp.CPUOffloadPolicy


def unpinned(pin_memory=False):
    """Pages are pinned for a GPU."""
    return _offload(pin_memory=False)


fsdp.CPUOffloadPolicy = unpinned


def register_rollout(module):
    """The engine ``stub``."""
    from verl.workers.rollout import base

    def replica():
        import verl_stub_rollout

        return verl_stub_rollout.StubReplica

    base._ROLLOUT_REGISTRY["stub", "async"] = "verl_stub_rollout.StubAdapter"
    module.RolloutReplicaRegistry.register("stub", replica)


when_imported("verl.workers.rollout.replica", register_rollout)


# --- rows in a fixed order -------------------------------------------------------------------
def numbered_uuids():
    """uuid4 for verl's trainers: the n-th is always the same."""
    real, count = uuid.uuid4, [0]

    def uuid4():
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("verl.trainer"):
            return real()
        count[0] += 1
        return uuid.UUID(
            int=(count[0] * 0x9E3779B97F4A7C15F39CC0605CEDC834) & ((1 << 128) - 1), version=4
        )

    uuid.uuid4 = uuid4


def sorted_replay(module):
    """V1: samples in the order of their prompts and tokens, not of their arrival."""

    def wrap(original):
        @functools.wraps(original)
        def sample(self, *args, **kwargs):
            import transfer_queue as tq

            batch, metrics = original(self, *args, **kwargs)
            rows = tq.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["responses"]
            )["responses"].unbind()
            place = [
                (key.rsplit("_", 2)[0], row.tolist())
                for key, row in zip(batch.keys, rows, strict=True)
            ]
            order = sorted(range(len(place)), key=place.__getitem__)
            batch.keys = [batch.keys[i] for i in order]
            batch.tags = [batch.tags[i] for i in order]
            return batch, metrics

        return sample

    for owner in (module.ReplayBuffer, module.ReplayBufferAsync):
        if "sample" in vars(owner):
            owner.sample = wrap(vars(owner)["sample"])


def sorted_loop(module):
    """V0: the samples of a prompt in the order of their tokens."""
    owner = module.AgentLoopManager
    original = owner.generate_sequences

    def ordered(out):
        if not hasattr(out, "batch"):
            return out
        prompts, answers, block, blocks = out.batch["prompts"], out.batch["responses"], 0, []
        for i in range(len(prompts)):
            block += bool(i and not torch.equal(prompts[i], prompts[i - 1]))
            blocks.append(block)
        order = sorted(range(len(blocks)), key=lambda i: (blocks[i], answers[i].tolist()))
        out.reorder(torch.tensor(order))
        return out

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def generate(self, *args, **kwargs):
            return ordered(await original(self, *args, **kwargs))

    else:

        @functools.wraps(original)
        def generate(self, *args, **kwargs):
            return ordered(original(self, *args, **kwargs))

    owner.generate_sequences = generate


if os.environ.get("ON_CPU_ORDER") == "1":
    numbered_uuids()
    when_imported("verl.trainer.ppo.v1.replay_buffer", sorted_replay)
    when_imported("verl.experimental.agent_loop.agent_loop", sorted_loop)
if os.environ.get("ON_CPU_DUMP"):
    import verl_dump

    verl_dump.install(os.environ["ON_CPU_DUMP"])
if os.environ.get("ON_CPU_FAULT"):
    import verl_faults

    verl_faults.install(os.environ["ON_CPU_FAULT"])

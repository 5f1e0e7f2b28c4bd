"""The rollout engine of verl's runs (`raylab_engine`): any replica of any request samples alike."""

import os

import ray
from raylab_engine import Sampler
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


@ray.remote
class Server:
    """One engine."""

    def __init__(self, path, length, rank=0):
        self.sampler = Sampler(path)
        self.length, self.rank = length, rank
        self.step = 0

    async def _nothing(self, *args, **kwargs):
        pass

    sleep = wake_up = clear_kv_cache = start_profile = _nothing
    stop_profile = abort_all_requests = resume_generation = _nothing

    async def set_global_steps(self, step):
        self.step = step

    async def load(self, weights, step):
        self.sampler.load(weights, step)
        if step is not None:
            self.step = step

    async def generate(self, request_id, prompt_ids, sampling_params, **kwargs):
        temperature = sampling_params.get("temperature", 1.0) or 1.0
        most = min(sampling_params.get("max_tokens") or self.length, self.length)
        ids, scores = self.sampler.sample(list(prompt_ids), most, temperature, self.rank, self.step)
        return TokenOutput(
            token_ids=ids,
            log_probs=scores,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={"global_steps": self.step},
        )


class StubReplica(RolloutReplica):
    """One engine for verl's manager."""

    async def launch_servers(self):
        config = self.model_config
        path = config.get("path") if hasattr(config, "get") else config.path
        server = Server.options(name=f"stub_{self.replica_rank}", num_cpus=0).remote(
            path, self.config.response_length, self.replica_rank
        )
        self.servers, self._server_handle = [server], server
        self._server_address = f"stub:{self.replica_rank}"


class StubAdapter(BaseRollout):
    """The trainer's end of it."""

    def __init__(self, config, model_config, device_mesh, *args, **kwargs):
        super().__init__(config, model_config, device_mesh)
        self.rank, self.server = int(os.environ["RANK"]), None

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, global_steps=None, **kwargs):
        found = {name: tensor.detach().cpu().float() for name, tensor in weights}
        self.server = self.server or ray.get_actor(f"stub_{self.rank}")
        await self.server.load.remote(found, global_steps)

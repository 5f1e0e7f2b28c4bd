"""A rollout engine of verl that samples with the HF model: the same for any order of requests.

``STUB_NOISE`` is a real mismatch (noise on the logits that are sampled and scored with),
``STUB_HASHES`` a file that gets a digest of the weights at each sync.
"""

import hashlib
import os
from pathlib import Path

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


def seed_of(*what):
    """A seed from anything that has a text."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), "big")


@ray.remote
class Server:
    """One engine."""

    def __init__(self, path, length, rank=0):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.end = AutoTokenizer.from_pretrained(path).eos_token_id
        self.length, self.rank = length, rank
        self.step, self.counts = 0, {}
        self.noise = float(os.environ.get("STUB_NOISE", "0"))

    async def _nothing(self, *args, **kwargs):
        pass

    sleep = wake_up = clear_kv_cache = start_profile = _nothing
    stop_profile = abort_all_requests = resume_generation = _nothing

    async def set_global_steps(self, step):
        self.step = step

    async def load(self, weights, step):
        self.model.load_state_dict(weights, strict=False)
        self.counts = {}
        if step is not None:
            self.step = step
        path = os.environ.get("STUB_HASHES")
        if path:
            digest = hashlib.sha256()
            for name in sorted(weights):
                digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
            with Path(path).open("a") as file:
                file.write(f"{step} {digest.hexdigest()}\n")

    async def generate(self, request_id, prompt_ids, sampling_params, **kwargs):
        ids, out, scores = list(prompt_ids), [], []
        temperature = sampling_params.get("temperature", 1.0) or 1.0
        most = min(sampling_params.get("max_tokens") or self.length, self.length)
        key = tuple(ids)
        self.counts[key] = self.counts.get(key, 0) + 1
        seed = seed_of(self.rank, self.step, key, self.counts[key])
        generator = torch.Generator().manual_seed(seed)
        most = 1 + seed % most if seed % 3 else max(1, most // 8)  # all lengths, many short ones
        past, x = None, torch.tensor([ids])
        for _ in range(most):
            with torch.no_grad():
                found = self.model(input_ids=x, past_key_values=past, use_cache=True)
            past, logits = found.past_key_values, found.logits[0, -1].float()
            logits = logits + self.noise * torch.randn(logits.shape, generator=generator)
            log_probs = torch.log_softmax(logits / temperature, -1)
            token = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
            out.append(token)
            scores.append(float(log_probs[token]))
            if token == self.end:
                break
            x = torch.tensor([[token]])
        return TokenOutput(
            token_ids=out,
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

"""An engine for OpenRLHF that samples with the HF model: the same for any order of requests.

``STUB_NOISE`` is a real mismatch (noise on the logits that are sampled and scored with),
``STUB_HASHES`` a file that gets a digest of the weights at each sync.
"""

import asyncio
import hashlib
import os
import types
from pathlib import Path

import ray
import torch


def seed_of(*what):
    """A seed from anything that has a text."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), "big")


@ray.remote(num_cpus=0)
class StubEngine:
    """One engine."""

    def __init__(self, path, reward):
        from openrlhf.utils.agent import SingleTurnAgentExecutor
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.end = AutoTokenizer.from_pretrained(path).eos_token_id
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.executor = SingleTurnAgentExecutor(reward)
        self.noise = float(os.environ.get("STUB_NOISE", "0"))
        self.version, self.counts = 0, {}

    def get_num_unfinished_requests(self):
        return 0

    def load(self, weights):
        self.version += 1
        self.counts = {}
        path = os.environ.get("STUB_HASHES")
        if path:
            digest = hashlib.sha256()
            for name in sorted(weights):
                digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
            with Path(path).open("a") as file:
                file.write(f"{self.version} {digest.hexdigest()}\n")
        found = {name.replace("module.", ""): x for name, x in weights.items()}
        self.model.load_state_dict(found, strict=False)

    def sleep(self, *args, **kwargs):
        pass

    wake_up = reset_prefix_cache = pause_generation = resume_generation = sleep

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        ids, out, scores = list(prompt_token_ids), [], []
        key = tuple(ids)
        self.counts[key] = self.counts.get(key, 0) + 1
        seed = seed_of(self.version, key, self.counts[key])
        generator = torch.Generator().manual_seed(seed)
        most = sampling_params.max_tokens or 16
        most = 1 + seed % most if seed % 3 else max(1, most // 8)  # all lengths, many short ones
        past, x = None, torch.tensor([ids])
        for _ in range(most):
            with torch.no_grad():
                found = self.model(input_ids=x, past_key_values=past, use_cache=True)
            past, logits = found.past_key_values, found.logits[0, -1].float()
            logits = logits + self.noise * torch.randn(logits.shape, generator=generator)
            log_probs = torch.log_softmax(logits / sampling_params.temperature, -1)
            token = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
            out.append(token)
            scores.append({token: types.SimpleNamespace(logprob=float(log_probs[token]))})
            if token == self.end:
                break
            x = torch.tensor([[token]])
        text = self.tokenizer.decode(out)
        one = types.SimpleNamespace(token_ids=out, text=text, finish_reason="stop", logprobs=scores)
        return types.SimpleNamespace(outputs=[one])

    async def generate_responses(self, num_samples=1, **given):
        runs = [self.executor.execute(**given, llm_engine=self) for _ in range(num_samples)]
        return await asyncio.gather(*runs)


def create(engines, tensor_parallel, path, *args, remote_rm_url=None, **kwargs):
    """In the place of `create_vllm_engines`."""
    return [StubEngine.remote(path, remote_rm_url) for _ in range(engines)]

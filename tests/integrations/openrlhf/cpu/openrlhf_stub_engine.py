"""The engine of OpenRLHF's runs (`raylab_engine`)."""

import asyncio
import types

import ray
from raylab_engine import Sampler


@ray.remote(num_cpus=0)
class StubEngine:
    """One engine."""

    def __init__(self, path, reward):
        from openrlhf.utils.agent import SingleTurnAgentExecutor

        self.sampler = Sampler(path)
        self.tokenizer = self.sampler.tokenizer
        self.executor = SingleTurnAgentExecutor(reward)
        self.version = 0

    def get_num_unfinished_requests(self):
        return 0

    def load(self, weights):
        self.version += 1
        self.sampler.load(weights, self.version)

    def sleep(self, *args, **kwargs):
        pass

    wake_up = reset_prefix_cache = pause_generation = resume_generation = sleep

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        most, temperature = sampling_params.max_tokens or 16, sampling_params.temperature
        ids, scores = self.sampler.sample(list(prompt_token_ids), most, temperature, self.version)
        scores = [
            {token: types.SimpleNamespace(logprob=score)}
            for token, score in zip(ids, scores, strict=True)
        ]
        text = self.tokenizer.decode(ids)
        one = types.SimpleNamespace(token_ids=ids, text=text, finish_reason="stop", logprobs=scores)
        return types.SimpleNamespace(outputs=[one])

    async def generate_responses(self, num_samples=1, **given):
        runs = [self.executor.execute(**given, llm_engine=self) for _ in range(num_samples)]
        return await asyncio.gather(*runs)


def create(engines, tensor_parallel, path, *args, remote_rm_url=None, **kwargs):
    """In the place of `create_vllm_engines`."""
    return [StubEngine.remote(path, remote_rm_url) for _ in range(engines)]

"""What stands in for a rollout engine: it samples with the HF model, the same for any order.

``STUB_NOISE`` is a real mismatch (noise on the logits that are sampled and scored with),
``STUB_HASHES`` a file that gets a digest of the weights at each sync.
"""

import hashlib
import os
from pathlib import Path

import torch


def seed_of(*what):
    """A seed from anything that has a text."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), "big")


class Sampler:
    """One engine's model."""

    def __init__(self, path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.noise = float(os.environ.get("STUB_NOISE", "0"))
        self.counts = {}

    def load(self, weights, version):
        """Take weights over, and write down which."""
        path = os.environ.get("STUB_HASHES")
        if path:
            digest = hashlib.sha256()
            for name in sorted(weights):
                digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
            with Path(path).open("a") as file:
                file.write(f"{version} {digest.hexdigest()}\n")
        found = {name.replace("module.", ""): x for name, x in weights.items()}
        self.model.load_state_dict(found, strict=False)
        self.counts = {}

    def sample(self, ids, most, temperature, *of):
        """Tokens after a prompt's, and their log-probs.

        Args:
            ids: of the prompt.
            most: tokens.
            temperature: of sampling and scores.
            of: what else decides, beside the prompt and how often it was asked.
        """
        out, scores, key = [], [], tuple(ids)
        self.counts[key] = self.counts.get(key, 0) + 1
        seed = seed_of(*of, key, self.counts[key])
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
            if token == self.tokenizer.eos_token_id:
                break
            x = torch.tensor([[token]])
        return out, scores

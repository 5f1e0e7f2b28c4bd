"""A tiny model, sums to learn, their reward: ``make_tiny.py FOLDER``."""

import json
import sys
from pathlib import Path

import raylab_model

folder = Path(sys.argv[1])
raylab_model.save(folder)
sums = [json.dumps({"input": f"{a}+{b}=", "label": str(a + b)}) for a, b in raylab_model.sums()]
(folder / "prompts.jsonl").write_text("\n".join(sums) + "\n")
(folder / "reward.py").write_text(
    "import torch\n"
    "def reward_func(queries, prompts, labels, **kwargs):\n"
    "    said = [q[len(p):] for q, p in zip(queries, prompts)]\n"
    "    found = [sum(c.isdigit() for c in s) / max(1, len(s)) for s in said]\n"
    "    found = torch.tensor(found)\n"
    "    return {'rewards': found, 'scores': found.clamp(0, 1), 'extra_logs': {}}\n"
)

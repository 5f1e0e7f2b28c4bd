"""A tiny model with a chat template, sums to learn, their reward: ``make_tiny.py FOLDER``."""

import sys
from pathlib import Path

import pandas as pd
import raylab_model

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
folder = Path(sys.argv[1])
raylab_model.save(folder, TEMPLATE, additional_special_tokens=["<|im_start|>"])
rows = [
    {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": f"{a}+{b}="}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "extra_info": {"index": i, "split": "train"},
    }
    for i, (a, b) in enumerate(raylab_model.sums())
]
pd.DataFrame(rows).to_parquet(folder / "train.parquet")
pd.DataFrame(rows[:8]).to_parquet(folder / "val.parquet")
(folder / "reward.py").write_text(
    "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
    "    said = solution_str or ''\n"
    "    return float(sum(letter.isdigit() for letter in said)) / max(1, len(said))\n"
)

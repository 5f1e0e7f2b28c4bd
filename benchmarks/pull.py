"""How often the rules about the KL term's pull alert on simulated tokens, beside the exact truth.

    PYTHONPATH=. python benchmarks/pull.py            # about 4 minutes

Eight families of tokens with exact policies behind them (`klmonitor.simulate`), 64 contexts of 32
tokens a step, and four terms; every number is seeded. Beside the alerts: the exact effective beta.
"""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import torch

from klmonitor import Monitor, Penalty
from klmonitor.pull import exact_pull
from klmonitor.simulate.cases import noise, t4_noise, temperature, zipf_logits
from klmonitor.simulate.samples import draw

STEPS, CONTEXTS, TOKENS, VOCABULARY = 100, 64, 32, 2000
FAMILIES = {
    **{f"noise {scale}": noise(scale) for scale in (0.1, 0.3, 0.5, 1.0)},
    **{f"temperature {value}": temperature(value) for value in (0.8, 1.1)},
    **{f"t4 noise {scale}": t4_noise(scale) for scale in (0.2, 0.5)},
}
TERMS = (
    Penalty("k3"),
    Penalty("k3", clamp=10.0),
    Penalty("k3", ratio="differentiated"),
    Penalty("k3", "reward"),
)


def main() -> None:
    """One line a family and term."""
    logging.disable(logging.CRITICAL)
    at_once = {kind: {"cooldown": 0} for kind in ("pull_dead", "pull_dominated", "pull_reversed")}
    for family, change in FAMILIES.items():
        rng = np.random.default_rng(0)
        given = change(rng, zipf_logits(rng, CONTEXTS, VOCABULARY))
        drawn = [draw(rng, given.q, TOKENS) for _ in range(STEPS)]
        for penalty in TERMS:
            monitor, found = Monitor(penalty=penalty, rules=at_once), Counter[str]()
            for step, x in enumerate(drawn):
                q, p = (np.take_along_axis(of, x, -1) for of in (given.q, given.p))
                monitor.observe(policy=q, ref=p)
                kinds = (kind for alert in monitor.step(step).alerts for kind in alert.kinds)
                found.update(kind for kind in kinds if kind in at_once)
            exact = exact_pull(torch.tensor(given.q), torch.tensor(given.p), penalty).pooled()
            beta = float(exact.effective_beta)
            print(f"{family:16} {penalty.term:40} exact {beta:5.2f}  {dict(found) or '-'}")


if __name__ == "__main__":
    main()

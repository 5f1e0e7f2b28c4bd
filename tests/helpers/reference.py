"""Plain numpy versions of every metric, written from the formulas, token by token."""

from __future__ import annotations

import numpy as np


def deviate(t, df):
    """Wallace's normal deviate of a t."""
    return np.sign(t) * (8 * df + 1) / (8 * df + 3) * np.sqrt(df * np.log1p(t * t / df))


def best_lambda(d, ess):
    """-Cov(k1, r - 1) / Var(r - 1) in [0, 1]; less from an effective share of r below 2 c on."""
    covariance = np.cov(-d, np.expm1(d))
    weight = np.clip(-covariance[0, 1] / covariance[1, 1], 0, 1)
    c = np.interp(np.log(len(d)), np.log([1024, 4096]), [0.3, 0.2])
    return float(weight * np.clip((ess - c) / c, 0, 1))


def plain_mixture(sequences):
    """The mixture in which each token counts at the lambda of the others; and at the same lambda.

    Of at most sixteen sequences [S, T], T >= 16. A token with r - 1 > 3 N is not left out of its
    lambda; those whose mean r is below 1/4 take away their share of the spread of r - 1.
    """
    d = sequences.ravel()
    r, g = np.exp(d), np.expm1(d)
    of_sequence = np.expm1(sequences).sum(1)
    lost = of_sequence / sequences.shape[1] + 1 < 0.25
    seen = 1 - (of_sequence[lost] ** 2).sum() / (of_sequence**2).sum()

    def at(some):
        ess = r[some].sum() ** 2 / (some.sum() * (r[some] ** 2).sum())
        return best_lambda(d[some], ess) * seen

    every = np.ones(len(d), bool)
    whole = at(every)
    others = np.array([at(np.arange(len(d)) != i) for i in range(len(d))])
    weights = np.where(g > 3 * len(d), whole, others)
    return float(np.mean(-d + weights * g)), float(np.mean(-d + whole * g))


def plain_metrics(d, sequence, *, prompt=None, sampler=None, log_q=None):
    """The metrics of finite, counted tokens.

    Args:
        d: [N] float64 log-ratios.
        sequence: [N] which sequence a token is of.
        prompt: [N] which prompt; None: unknown.
        sampler: [N] log-probs of the policy that drew the tokens; None: q itself.
        log_q: [N] log-probs under q, with `sampler`.
    """
    n = len(d)
    k = {"k1": -d, "k2": d * d / 2, "k3": np.expm1(d) - d}
    few = prompt is None or len(np.unique(prompt)) < 2
    clusters = sequence if few else prompt
    index = np.unique(clusters, return_inverse=True)[1]
    n_clusters = len(np.unique(clusters))
    by_sequence = np.unique(sequence, return_inverse=True)[1]

    def error_of(x, of=index):
        sums, sizes = np.bincount(of, weights=x), np.bincount(of)
        b = len(sums)
        return np.sqrt(b / (b - 1) * np.sum((sums - x.mean() * sizes) ** 2)) / n

    out = {}
    for name, x in k.items():
        out[f"{name}/mean"] = x.mean()
        out[f"{name}/var"] = x.var(ddof=1)
        out[f"{name}/se"] = error_of(x)
    r = np.exp(d)
    gap, bias = k["k3"] - k["k1"], k["k2"] - k["k1"]
    ess = r.sum() ** 2 / (n * (r * r).sum())
    lam = best_lambda(d, ess)
    on_policy = sampler is None
    gap_z = deviate(gap.mean() / error_of(gap), n_clusters - 1)
    missed = abs(gap_z) > 5 and abs(gap.mean()) > 0.1 * k["k3"].mean()
    at_lambda = -d + (lam if on_policy and not missed else 0) * (r - 1)
    w = np.ones(n) if on_policy else np.exp(log_q - sampler)
    of_w = w.sum() ** 2 / (n * (w * w).sum())
    both = [np.sum(w * gap) / w.sum(), np.mean(w * r) - 1]
    weighted_gap = min(both, key=abs) if both[0] * both[1] > 0 else 0.0
    weighted_z = deviate(weighted_gap / error_of(gap), n_clusters - 1)
    judged = on_policy or of_w >= 0.98
    out |= {
        "k1/negative_share": np.mean(d > 0),
        "k1/cancellation": 1 - abs(d.sum()) / np.abs(d).sum(),
        "k2/bias": bias.mean(),
        "k2/bias_z": deviate(bias.mean() / error_of(bias), n_clusters - 1),
        "gap": weighted_gap if judged else np.nan,
        "gap_z": weighted_z if judged else np.nan,
        "gap_se": error_of(gap, by_sequence) if judged else np.nan,
        "k1/sequence_se": error_of(-d, by_sequence),
        "cv/se": error_of(at_lambda),
        "cv/lambda": lam,
        "cv/corr": np.corrcoef(-d, r - 1)[0, 1],
        "cv/variance_ratio": k["k3"].var(ddof=1) / k["k1"].var(ddof=1),
        "tokens": n,
        "sequences": len(np.unique(sequence)),
        "clusters": len(np.unique(clusters)),
        "prompts": np.nan if prompt is None else len(np.unique(prompt)),
        "on_policy": float(on_policy),
        "ess": ess,
        "iw/k1/mean": np.nan if on_policy else np.sum(w * k["k1"]) / w.sum(),
        "iw/k3/mean": np.nan if on_policy else np.sum(w * k["k3"]) / w.sum(),
        "iw/ess": np.nan if on_policy else of_w,
        "identical": np.mean(d == 0),
        "clamped": np.sum(d > 350),
        "outliers/k1": np.sum(d <= -2),
        "outliers/k3": np.sum(d >= 2),
        "outliers/rate": 1e4 * np.mean(np.abs(d) >= 2),
        "log_ratio/min": d.min(),
        "log_ratio/max": d.max(),
        "log_ratio/excluded": np.sum(np.abs(d) > 20),
        "sequence/k1": k["k1"].sum() / len(np.unique(sequence)),
        "sequence/k3": k["k3"].sum() / len(np.unique(sequence)),
    }
    for t in (1, 2, 5, 10):
        out[f"log_ratio/le_{-t}"] = np.sum(d <= -t)
        out[f"log_ratio/ge_{t}"] = np.sum(d >= t)
    for probability, label in (
        (0.001, "p0.1"),
        (0.01, "p1"),
        (0.5, "p50"),
        (0.25, "p25"),
        (0.75, "p75"),
        (0.99, "p99"),
        (0.999, "p99.9"),
    ):
        out[f"log_ratio/{label}"] = np.quantile(d, probability, method="inverted_cdf")
    seq = np.unique(sequence, return_inverse=True)[1]
    deviation = np.bincount(seq, weights=-d) - (-d).mean() * np.bincount(seq)
    out["dominance/top_sequence_share"] = (deviation**2).max() / (deviation**2).sum()
    m = int(np.clip(n // 400, 1, 10))
    for name, size in (("k1", np.abs(d)), ("k3", k["k3"])):
        top = np.argsort(-size, kind="stable")[:m]
        rest = np.delete(k[name], top)
        out[f"{name}/mean_without_top"] = rest.mean()
        out[f"dominance/{name}/top_share"] = np.abs(k[name][top]).sum() / np.abs(k[name]).sum()
    return out

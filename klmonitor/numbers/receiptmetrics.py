"""The rows of the table of metrics that tell what a KL term pulls (docs/penalty.md)."""

from __future__ import annotations


def _audit(name: str, what: str, text: str) -> tuple[tuple[str, str, str, str], ...]:
    return (
        (f"audit/{name}", "nats", f"mean {what} at the audit positions", text),
        (f"audit/{name}_se", "nats", "cluster standard error of it, by sequence",
         "as of k1/se, over the sequences of the audit positions"),
    )  # fmt: skip


# fmt: off
RECEIPT: tuple[tuple[str, str, str, str], ...] = (
    ("penalty/beta", "weight", "beta", "of the KL term on this pair (docs/penalty.md)"),
    ("penalty/pull", "nats", "beta mean(c)",
     "mean of the KL term's coefficient of grad log pi: c is d's function, by the placement"),
    ("penalty/effective_beta", "weight", "beta cov(c, t) / var(t), t = -d",
     "the weight of a true reverse KL that the term is nearest to, in the space of tokens "
     "(docs/penalty.md: where that is not the gradient's)"),
    ("penalty/effective_beta_se", "weight", "slope's SE x clustering",
     "its standard error: that of a regression's slope, widened as k1's and k3's errors are"),
    ("penalty/dead_share", "share", "#(c = 0, d != 0) / N",
     "tokens that stray and that the KL term does not pull, as a clamp stops it"),
    ("penalty/dead_pull", "share", "sum |d| of the dead / sum |d|",
     "share of what the reverse KL would pull that the clamp stops"),
    ("penalty/opposite_share", "share", "#(c t < 0) / N",
     "tokens that the KL term pulls the wrong way"),
    ("penalty/top_share", "share", "sum_o |c| / sum |c|",
     "share of the pull that the tokens of largest |c| hold, clip(N / 400, 1, 10) of them"),
    ("penalty/top_d", "nats", "d of the token of largest |c|", "exact: it is an extreme token"),
    ("penalty/overruled", "share", "#(|beta c| > |A rho|, A c > 0) / #(A != 0)",
     "tokens that the KL term moves against their reward, where observe(advantages=) gave it; "
     "of a term in the loss"),
    ("penalty/overruled_lost", "share", "#(these with d > 0) / #(these)",
     "how many of them the policy finds less likely than the reference does"),
    ("penalty/paid", "nats", "mean |beta c| where A != 0", "beside penalty/reward"),
    ("penalty/reward", "advantage", "mean |A rho| where A != 0", "the reward's pull"),
    ("audit/positions", "positions", "#(audit positions)",
     "positions whose logits were looked at (attach(audit_every=))"),
    *_audit("kl", "exact KL", "the Rao-Blackwellised estimate: sum_v q (log q - log p)"),
    *_audit("k1", "k1", "of the tokens drawn at the same positions"),
    *_audit("k2", "k2", "likewise"),
    *_audit("k3", "k3", "likewise"),
    ("audit/entropy", "nats", "mean H", "of the policy, exact, at the audit positions"),
    ("audit/length", "ratio", "|g| / |g of the reverse KL|",
     "of the KL term's exact gradient in the logits, g = sum_x q c (e_x - q), without beta"),
    ("audit/cosine", "cosine", "<g, true> / (|g| |true|)", "its direction"),
    ("audit/effective_beta", "weight", "beta <g, true> / |true|^2",
     "the weight of the reverse KL that is nearest to the KL term, exact at these positions"),
)
# fmt: on
"""Name, unit, formula, meaning; as for `metrics.Metric`."""
SENT = ("penalty/effective_beta", "penalty/dead_share")
"""Those of the core: of the one pair that an objective penalises."""
DRAWN = dict.fromkeys((*SENT, "audit/effective_beta"), "What the KL term pulls")
"""Name -> panel."""

"""The estimators on known distributions, where every moment is a finite sum.

A *context* is a pair of distributions over a vocabulary; a case draws contexts. Logits fall with
the log of the rank (Zipf), with an exponent that differs between contexts as the certainty of a
language model does. For every context the moments of k1, k2 and k3 are exact sums over the
vocabulary; only the contexts are random. Torch-free.
"""

from klmonitor.simulate.cases import CASES, CLEAN_FAMILIES, Case, Distributions
from klmonitor.simulate.moments import Truth, gaussian_truth, truth
from klmonitor.simulate.samples import ClusteredTokens, Clustering, Tokens, sample
from klmonitor.simulate.tables import gaussian_rows, vocabulary_rows

__all__ = [
    "CASES",
    "CLEAN_FAMILIES",
    "Case",
    "ClusteredTokens",
    "Clustering",
    "Distributions",
    "Tokens",
    "Truth",
    "gaussian_rows",
    "gaussian_truth",
    "sample",
    "truth",
    "vocabulary_rows",
]

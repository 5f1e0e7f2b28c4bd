"""The exact KL at every position, from full-vocabulary logits: the truth behind the estimators.

`sum_v q (log q - log p)` cancels: its terms are of both signs, and in float32 it is off by 1e-7,
which is a tenth of a KL of 1e-6. Here every term is non-negative, the generalised KL of
unnormalised measures,

    KL(q || p) = sum_v [q (log q - log p) - q + p] = sum_v q k3(d),    d = log p - log q,

which equals the KL where q and p sum to 1. It is also insensitive to what float32 does to the
normalisers: an error e in log sum exp moves it by sum_v (p - q) e = 0 to first order.

For ordinary logits there is a quicker way to the same. With any weights u and l = log(p / q) up to
a constant,

    log(sum u e^l / sum u) - sum u l / sum u = KL(u / sum u || u e^l / sum u e^l),

exactly. So u may be a float32 softmax: its relative errors e make it the KL of distributions that
are as near, and move it by at most 2 KL max |e|. The three sums cancel and are in float64, which
leaves an absolute error of 1e-15.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from klmonitor.estimators import k3

TILE = {"cpu": 1 << 18}
"""Logits worked on at once; a dozen float32 buffers of this size exist at a time."""
LARGE_TILE = 1 << 21
"""The same on an accelerator, where few large kernels are faster: at most 200 MB (float64)."""
ORDINARY_SPREAD = 64.0
"""Nats from a row's largest logit to its smallest, up to which float32 weights are good to 4e-6
(their exponents' rounding) and nothing underflows."""
NEGLIGIBLE_LOG_Q = -80.0
"""Nats. Below it q is all but denormal in float32 and q k3(d) is read as its limit p, leaving out
q (1 + d) < 1e-32."""


@torch.no_grad()
def exact_kl(
    q_logits: Tensor,
    p_logits: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """KL(q || p) over the whole vocabulary, at every position.

    Works on tiles of positions and vocabulary: beyond the inputs and the result it needs tens of
    megabytes, whatever the shapes. Nothing is copied to contiguous memory as a whole, so a slice
    such as ``logits[:, :-1]`` is fine.

    Args:
        q_logits: unnormalised log-probs of q, [..., V], any float dtype and device. ``-inf`` means
            that q never draws the token.
        p_logits: those of p, the same shape and device.
        mask: [...], bool or numbers of which non-zero counts; None: every position.
        temperature: both logits are divided by it.

    Returns:
        [...], nats per position; float64 if either input is, else float32. inf where p excludes a
        token that q can draw. nan where nothing can be said: a row with nan, with +inf, or with
        every token excluded; and where the mask is 0: a masked position has no KL, and a 0 there
        would pass for perfect agreement in a mean (use ``nanmean``).

    Accuracy:
        Float32: relative error below 1e-5 down to a KL of 1e-9, and an absolute one of 1e-14
        below; float64: 1e-11 (against 50 digits in the tests). What bfloat16 logits themselves
        have lost cannot be had back.

    Raises:
        ValueError: shapes or devices differ, or the temperature is not positive.
        TypeError: logits are not floats.
    """
    check_logits(q_logits, p_logits, mask, temperature)
    double = torch.float64 in (q_logits.dtype, p_logits.dtype)
    kl = torch.full(
        q_logits.shape[:-1],
        torch.nan,
        dtype=torch.float64 if double else torch.float32,
        device=q_logits.device,
    )
    if mask is None:
        mask = torch.ones_like(kl, dtype=torch.bool)
    _fill(kl, q_logits, p_logits, mask.to(kl.device) != 0, temperature)
    return kl


def check_logits(q: Tensor, p: Tensor, mask: Tensor | None, temperature: float) -> None:
    """Refuse what are no logits of the same positions; errors as of `exact_kl`."""
    for name, logits in (("q_logits", q), ("p_logits", p)):
        if not logits.is_floating_point():
            raise TypeError(f"{name} must be a float tensor, got {logits.dtype}: pass logits")
    if q.shape != p.shape or not q.dim():
        raise ValueError(
            f"q_logits has shape {list(q.shape)} but p_logits {list(p.shape)}: pass the same "
            "positions and cut padded vocabularies to the tokenizer's size"
        )
    if q.device != p.device:
        raise ValueError(f"q_logits is on {q.device} but p_logits on {p.device}: move one")
    if mask is not None and mask.shape != q.shape[:-1]:
        raise ValueError(
            f"mask has shape {list(mask.shape)} but there are {list(q.shape[:-1])} positions: "
            "pass one value a position"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _fill(kl: Tensor, q: Tensor, p: Tensor, mask: Tensor, temperature: float) -> None:
    """Write the KL of unmasked positions; leading dimensions that no view can join are looped."""
    vocabulary = q.shape[-1]
    try:
        rows = q.view(-1, vocabulary), p.view(-1, vocabulary)
    except RuntimeError:
        for i in range(len(q)):
            _fill(kl[i], q[i], p[i], mask[i], temperature)
        return
    index = mask.reshape(-1).nonzero().squeeze(-1)
    tile = TILE.get(q.device.type, LARGE_TILE)
    width = min(vocabulary, tile)
    flat = kl.view(-1)
    for positions in torch.split(index, max(tile // max(width, 1), 1)):
        tiles = _Tiles(*rows, positions, width, kl.dtype)
        if width == vocabulary:
            found = _kl_of_rows(*next(iter(tiles)), temperature)
        else:
            found = _kl(tiles, temperature)
        flat[positions] = found.to(kl.dtype)


@dataclass(frozen=True)
class _Tiles:
    """Some positions of both logits, walked through in tiles of the vocabulary.

    Attributes:
        q: [rows, V].
        p: [rows, V].
        positions: which rows, int64 [R].
        width: tokens a tile.
        dtype: to compute in.
    """

    q: Tensor
    p: Tensor
    positions: Tensor
    width: int
    dtype: torch.dtype

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tiles of q's and p's logits, [R, width]."""
        for start in range(0, self.q.shape[1], self.width):
            columns = slice(start, start + self.width)
            q, p = (self._rows_of(x[:, columns]).to(self.dtype) for x in (self.q, self.p))
            yield q, p

    def _rows_of(self, x: Tensor) -> Tensor:
        """The positions' rows, as they lie where they are neighbours on the host."""
        if x.is_cpu and len(self.positions):
            first, last = int(self.positions[0]), int(self.positions[-1])
            if last - first + 1 == len(self.positions):
                return x[first : last + 1]
        return x.index_select(0, self.positions)


def _kl_of_rows(q: Tensor, p: Tensor, temperature: float) -> Tensor:
    """KL of whole rows of logits [R, V], float64 [R]: the quick way where it is good enough."""
    if q.dtype != torch.float32:
        return _kl([(q, p)], temperature)
    found, ordinary = _kl_of_ordinary(q, p, temperature)
    if not ordinary.all():
        rest = ~ordinary
        found[rest] = _kl([(q[rest], p[rest])], temperature)
    return found


def _kl_of_ordinary(q: Tensor, p: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL of float32 logits [R, V] by three sums, float64 [R]; and for which rows that holds.

    On the CPU `amax` and `amin` are each forty times as fast as `aminmax`.
    """
    top, low = (torch.stack([of(x, -1) for x in (q, p)]) for of in (torch.amax, torch.amin))
    ordinary = ((top - low) / temperature <= ORDINARY_SPREAD).all(0)  # nan and inf are not
    log_ratio = torch.sub(p, q).double().sub_((top[1] - top[0])[:, None])
    if temperature != 1.0:
        log_ratio.div_(temperature)
        q = q / temperature
    weights = torch.softmax(q, -1).double()
    whole = weights.sum(-1)
    mean = _dots(weights, log_ratio) / whole
    tilted = weights.mul_(log_ratio.exp_()).sum(-1)  # summed as `whole` is: equals have a KL of 0
    return ((tilted / whole).log() - mean).clamp_(min=0.0), ordinary


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, [R, V] -> [R]; on the CPU a batched one is eight times as slow."""
    if a.is_cpu and len(a):
        return torch.stack([torch.dot(x, y) for x, y in zip(a, b, strict=True)])
    return torch.bmm(a[:, None], b[:, :, None]).reshape(-1)


def _kl(tiles: Iterable[tuple[Tensor, Tensor]], temperature: float) -> Tensor:
    """KL of every position, float64 [R], from tiles of logits [R, width]; three passes."""
    tops = [torch.cat([x.amax(-1, keepdim=True) for x in tile], dim=1) for tile in tiles]
    top = torch.stack(tops).amax(0)
    top_q, top_p = top[:, :1], top[:, 1:]
    z_q = z_p = torch.zeros_like(top_q, dtype=torch.float64)
    for q, p in tiles:
        z_q = z_q + _sum(((q - top_q) / temperature).exp_())
        z_p = z_p + _sum(((p - top_p) / temperature).exp_())
    # As a difference of maxima and one of logarithms, neither of which cancels.
    shift = ((top_p - top_q).double() / temperature + (z_p / z_q).log()).to(top.dtype)
    log_z_q, log_z_p = z_q.log().to(top.dtype), z_p.log().to(top.dtype)

    total = torch.zeros_like(z_q)
    for q, p in tiles:
        log_q = ((q - top_q) / temperature).sub_(log_z_q)
        log_p = ((p - top_p) / temperature).sub_(log_z_p)
        d = ((p - q) / temperature).sub_(shift)  # more accurate than log_p - log_q
        terms = torch.where(log_q < NEGLIGIBLE_LOG_Q, log_p.exp_(), log_q.exp_().mul_(k3(d)))
        excluded = p.isneginf() & ~q.isneginf()
        total += _sum(terms.masked_fill_(excluded, torch.inf))
    return torch.where(top.isfinite().all(-1, keepdim=True), total, torch.nan).squeeze(-1)


def _sum(x: Tensor) -> Tensor:
    """Over the vocabulary, float64 [R, 1]."""
    return x.sum(-1, keepdim=True, dtype=torch.float64)

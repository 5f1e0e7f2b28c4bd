"""Layouts that are accepted, and the one-line errors for those that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klmonitor.summary.batch import build

B, T = 3, 5


def tensors():
    generator = torch.Generator().manual_seed(0)
    return -torch.rand(B, T, generator=generator), -torch.rand(B, T, generator=generator)


def test_rows_are_sequences():
    q, p = tensors()
    batch = build({"policy": q, "ref": p, "old": None}, mask=torch.ones(B, T, dtype=torch.int64))
    assert batch.shape == (B, T)
    assert batch.n_sequences == B
    assert batch.segments is None
    assert set(batch.log_probs) == {"policy", "ref"}
    assert batch.mask.dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float64])
def test_masks_of_any_dtype_mean_the_same(dtype):
    q, p = tensors()
    mask = (torch.arange(T) < 3).expand(B, T)
    assert torch.equal(build({"policy": q, "ref": p}, mask=mask.to(dtype)).mask, mask)


def packed(lengths):
    ends = np.concatenate([[0], np.cumsum(lengths)])
    segments = np.repeat(np.arange(len(lengths)), lengths)
    return ends, segments


@pytest.mark.parametrize("lengths", [[4, 1, 6], [2, 0, 3], [5]])
def test_packed_layouts_agree(lengths):
    ends, segments = packed(lengths)
    n = int(ends[-1])
    q, p = -torch.rand(n), -torch.rand(n)
    pair = {"policy": q, "ref": p}
    by_offsets = build(pair, cu_seqlens=torch.tensor(ends), check_values=True)
    assert by_offsets.segments.tolist() == segments.tolist()
    assert by_offsets.n_sequences == len(lengths)
    as_lists = {name: list(value.split(lengths)) for name, value in pair.items()}
    by_list = build(as_lists)
    assert by_list.segments.tolist() == segments.tolist()
    assert torch.equal(by_list.log_probs["ref"], p.unsqueeze(0))
    by_ids = build(pair, sequence_ids=torch.tensor(segments * 7 + 3))
    _, dense = np.unique(segments, return_inverse=True)
    assert by_ids.segments.tolist() == dense.tolist()


def test_numpy_arrays_are_taken():
    q, p = (x.numpy() for x in tensors())
    batch = build({"policy": q, "ref": p}, mask=np.ones((B, T), dtype=bool))
    assert batch.log_probs["ref"].tolist() == p.tolist()


def test_gradients_are_cut():
    q, p = tensors()
    assert not build({"policy": q.requires_grad_(), "ref": p}).log_probs["policy"].requires_grad


Q, P = tensors()
BAD = {
    "shapes differ": (
        {"policy": Q, "ref": P[:, 1:]},
        {},
        ValueError,
        r"ref has shape \[3, 4\] but policy has \[3, 5\].*slice both",
    ),
    "integer log-probs": (
        {"policy": Q, "ref": torch.zeros(B, T, dtype=torch.int64)},
        {},
        TypeError,
        r"ref has dtype torch\.int64.*token ids",
    ),
    "mask shape": (
        {"policy": Q, "ref": P},
        {"mask": torch.ones(B, T + 1)},
        ValueError,
        r"mask has shape \[3, 6\] but policy has \[3, 5\]",
    ),
    "mask values": (
        {"policy": Q, "ref": P},
        {"mask": torch.full((B, T), 0.5)},
        ValueError,
        r"mask has values other than 0 and 1",
    ),
    "unknown policy": (
        {"policy": Q, "reference": P},
        {},
        TypeError,
        r"unknown policy 'reference'.*policy, old, rollout, ref",
    ),
    "one policy": ({"policy": Q}, {}, ValueError, r"two policies, got policy"),
    "logits": (
        {"policy": torch.zeros(B, T, 7), "ref": P},
        {},
        ValueError,
        r"\[3, 5, 7\].*not logits",
    ),
    "packed without boundaries": (
        {"policy": Q[0], "ref": P[0]},
        {},
        ValueError,
        r"packed tokens need cu_seqlens or sequence_ids",
    ),
    "offsets short of the end": (
        {"policy": Q[0], "ref": P[0]},
        {"cu_seqlens": torch.tensor([0, 2])},
        ValueError,
        r"cu_seqlens runs from 0 to 2 but there are 5 tokens",
    ),
    "offsets with rows": (
        {"policy": Q, "ref": P},
        {"cu_seqlens": torch.tensor([0, 2])},
        ValueError,
        r"belong to packed",
    ),
    "mixed layouts": (
        {"policy": list(Q), "ref": P},
        {},
        ValueError,
        r"policy is a list but ref is a tensor",
    ),
    "lists of other lengths": (
        {"policy": list(Q), "ref": [row[1:] for row in P]},
        {},
        ValueError,
        r"different lengths",
    ),
    "prompt ids": (
        {"policy": Q, "ref": P},
        {"prompt_ids": torch.zeros(2, dtype=torch.int64)},
        ValueError,
        r"prompt_ids has shape \[2\] but there are 3 sequences",
    ),
    "float token ids": (
        {"policy": Q, "ref": P},
        {"token_ids": Q},
        TypeError,
        r"token_ids has dtype torch\.float32",
    ),
    "not a tensor": ({"policy": "x", "ref": P}, {}, TypeError, r"policy is a str"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_one_line_error_with_the_remedy(case):
    log_probs, layout, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        build(log_probs, check_values=True, **layout)
    assert "\n" not in str(caught.value)


def test_read_only_and_reversed_arrays_are_copied():
    array = -np.ones((2, 3), dtype=np.float32)
    array.setflags(write=False)
    batch = build({"policy": array, "ref": array[:, ::-1]})
    assert batch.log_probs["ref"].tolist() == array.tolist()


def test_lists_of_no_sequences_are_no_tokens():
    assert build({"policy": [], "ref": []}).shape == (1, 0)


def test_offsets_that_decrease_are_refused():
    with pytest.raises(ValueError, match="decreases"):
        build(
            {"policy": torch.zeros(20), "ref": torch.zeros(20)},
            cu_seqlens=torch.tensor([0, 15, 5, 20]),
            check_values=True,
        )

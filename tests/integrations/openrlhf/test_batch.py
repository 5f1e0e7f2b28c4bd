"""Tokens and prompts of an experience; needs no OpenRLHF."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from klmonitor_openrlhf.batch import layout_of


def experience(rows, pad=0, width=None):
    """Rows of (prompt, response) as OpenRLHF pads them: on the right."""
    width = width or max(len(p) + len(r) for p, r in rows)
    sequences = torch.full((len(rows), width), pad)
    attention, mask = torch.zeros(len(rows), width), torch.zeros(len(rows), width - 1)
    for row, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        sequences[row, :length] = torch.tensor([*prompt, *response])
        attention[row, :length] = 1
        mask[row, len(prompt) - 1 : length - 1] = 1
    return SimpleNamespace(sequences=sequences, attention_mask=attention, action_mask=mask.bool())


def test_a_prompt_is_known_by_its_tokens_whatever_was_sampled_and_padded():
    rows = [([5, 6, 7], [1, 2]), ([5, 6, 7], [3]), ([5, 6], [7, 1]), ([8, 6, 7], [1, 2])]
    one = experience(rows)
    keys = layout_of(one, one.action_mask)["prompt_ids"].tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    wide = experience(rows[:1], pad=9, width=20)
    assert layout_of(wide, wide.action_mask)["prompt_ids"].tolist() == keys[:1]


def test_a_second_turns_prompt_is_the_first_turns():
    rows = [([5, 6], [1, 2, 3, 4]), ([5, 6], [1, 9, 9, 4])]
    one = experience(rows)
    one.action_mask[:, 2] = False  # an answer of the environment's between two turns
    keys = layout_of(one, one.action_mask)["prompt_ids"].tolist()
    assert keys[0] == keys[1]


def test_tokens_stand_where_their_log_probs_do():
    one = experience([([5, 6, 7], [1, 2])])
    tokens = layout_of(one, one.action_mask)["token_ids"]
    assert tokens[one.action_mask].tolist() == [1, 2]


def test_what_does_not_fit_is_left_out():
    one = experience([([5, 6, 7], [1, 2])])
    assert layout_of(one, one.action_mask[:, 1:]) == {}
    assert layout_of(SimpleNamespace(), one.action_mask) == {}

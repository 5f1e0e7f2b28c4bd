"""The text of extreme tokens: decoded on the machine that trains, for its record.

The ids of a step's micro-batches are kept until the step is closed; those on a GPU are copied to
the host, for which nothing of training's waits. They are decoded when the step is recorded, on the
record's own thread, by a copy of the tokenizer: a trainer that sets its padding meanwhile would
fail. Only this process's own tokens have their context; of another rank's, which come with their id
alone, the token is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from klmonitor.boundary import cause, say
from klmonitor.record.rows import RECORDED_TOKENS
from klmonitor.report import ExtremeToken
from klmonitor.summary.arrivals import Arrival, sent

BEFORE = 12
"""Tokens of context before the extreme one."""
LIMIT = 1024
"""Micro-batches of a step that are kept; tokens of later ones come without context."""
KNOWN_TOKENS = 2**16
"""Tokens of the vocabulary whose text is remembered."""
MARK = "⟦{}⟧"
"""The token within its context."""


class TokenText:
    """Decodes extreme tokens of the step that is being closed.

    Args:
        tokenizer: anything with ``decode(ids)`` that can be copied.
        rank: of this process.
    """

    def __init__(self, tokenizer: Any, rank: int) -> None:
        """Nothing kept."""
        self._tokenizer, self._rank = deepcopy(tokenizer), rank
        self._word = lru_cache(KNOWN_TOKENS)(self._decoded)
        self._ids: dict[str, list[Arrival | None]] = {}

    def keep(self, phase: str, ids: Tensor | None) -> None:
        """Keep the ids of one micro-batch, [B, T] or packed [N]."""
        kept = self._ids.setdefault(phase, [])
        if len(kept) < LIMIT:
            if ids is None or ids.ndim != 2:
                kept.append(None)
            else:
                kept.append(Arrival(ids, ()) if ids.is_cpu else sent(ids))

    def forget(self, phase: str) -> None:
        """A step is over."""
        self._ids.pop(phase, None)

    def annotate(
        self, tokens: Sequence[ExtremeToken], phase: str
    ) -> Callable[[], list[ExtremeToken]]:
        """What makes the tokens of this step with their text, also once the step is forgotten."""
        contexts = partial(self._contexts, tokens, self._ids.get(phase, []))
        return lambda: self._with_text(tokens, contexts())

    def _with_text(
        self, tokens: Sequence[ExtremeToken], contexts: Sequence[Sequence[int]]
    ) -> list[ExtremeToken]:
        """The tokens with their text; at an ordinary step few of them with its context."""
        return [
            token.with_text(self._text(token, context))
            for token, context in zip(tokens, contexts, strict=True)
        ]

    def words(self, ids: Sequence[int]) -> list[str]:
        """Each token by itself."""
        return [self._word(token_id) for token_id in ids]

    def _decoded(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))

    def _text(self, token: ExtremeToken, context: Sequence[int]) -> str | None:
        if token.token_id is None:
            return None
        marked = MARK.format(self._word(token.token_id))
        return self._tokenizer.decode(list(context)) + marked if context else marked

    def _contexts(
        self,
        tokens: Sequence[ExtremeToken],
        kept: Sequence[Arrival | None],
    ) -> list[list[int]]:
        """Ids before those chosen, oldest first."""
        contexts: list[list[int]] = [[] for _ in tokens]
        for number in with_context(tokens):
            token = tokens[number]
            ids = kept[token.micro_batch] if token.micro_batch < len(kept) else None
            if token.rank == self._rank and ids is not None:
                before = slice(max(token.position - BEFORE, 0), token.position)
                contexts[number] = ids.wait().numpy()[token.sequence, before].tolist()
        return contexts


def with_context(tokens: Sequence[ExtremeToken]) -> list[int]:
    """Which tokens to decode with what came before them.

    The first of each tail, since decoding takes longer than all else; where more of a tail are
    recorded than usual, since the step is dominated or alerted, all of it.
    """
    tails: dict[tuple[str, str], list[int]] = {}
    for number, token in enumerate(tokens):
        tails.setdefault((token.pair, token.tail), []).append(number)
    return [
        number
        for numbers in tails.values()
        for number in (numbers if len(numbers) > RECORDED_TOKENS else numbers[:1])
    ]


def decoder(tokenizer: Any, log_tokens: Any) -> TokenText | None:
    """What decodes extreme tokens on a driver; None: it may not, or the tokenizer cannot.

    Args:
        tokenizer: of the run; None: there is none.
        log_tokens: the option.
    """
    if log_tokens is False or not hasattr(tokenizer, "decode"):
        return None
    try:
        return TokenText(tokenizer, rank=0)
    except Exception as error:  # noqa: BLE001  # whatever a tokenizer does when it is copied
        say("tokens are recorded without text: no copy of the tokenizer (%s)", cause(error))
        return None

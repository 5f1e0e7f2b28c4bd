"""What a loop says of its steps: at the first what cannot be is refused, later it is counted."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from klmonitor.boundary import Boundary, say
from klmonitor.numbers import runvalues


class Steps:
    """The numbers of the steps that were closed.

    Args:
        boundary: counts what cannot be.

    Attributes:
        last: the number of the last step; None: there was none.
    """

    def __init__(self, boundary: Boundary) -> None:
        self.last: int | None = None
        self._boundary = boundary
        self._went_back = False

    def known(self, run: Mapping[str, Any] | None) -> Mapping[str, float]:
        """What is given of the run; after the first step what cannot be is left out.

        Raises:
            TypeError: before the first step: a value is no number.
            ValueError: before the first step: a name is unknown.
        """
        if run is None:
            return {}
        try:
            return runvalues.checked(run)
        except Exception as error:  # between here and the collectives nothing may be raised
            if self.last is None and isinstance(error, (TypeError, ValueError)):
                raise
            self._boundary.caught(error)
            return {}

    def number(self, step: Any) -> int:
        """The step as a whole number; what is none continues from the last one.

        Raises:
            TypeError: before the first step: it is none.
        """
        try:
            is_one = isinstance(step, int) or not hasattr(step, "item")
            number = operator.index(step if is_one else step.item())
        except (TypeError, ValueError, RuntimeError):
            error = TypeError(
                f"step is {step!r}: give the trainer's step, a whole number, as step(17)"
            )
            if self.last is None:
                raise error from None
            self._boundary.caught(error)
            number = self.last + 1
        if self.last is not None and number < self.last and not self._went_back:
            self._went_back = True
            say(
                "step %d comes after step %d: steps that come again replace",
                number,
                self.last,
            )
        self.last = number
        return number

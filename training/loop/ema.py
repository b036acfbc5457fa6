"""The averaged weights that a run exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import cut, is_sharded, local, whole


class EMA:
    """Exponential moving average of a module's trainable parameters, decay min(d, (1 + n) / (10 + n)) at update n."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay, self.updates = decay, 0
        self._averaged, self._whole = local(self.average), None if is_sharded(module) else local(self.parameters)

    def _trained(self) -> list[Tensor]:
        """What this process holds of the parameters; shards are asked for anew, for FSDP may put them elsewhere."""
        return self._whole or local(self.parameters)

    def update(self) -> None:
        """Count the weights as they are now."""
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged, self._trained(), weight)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module carries its averaged weights."""
        trained = [p.clone() for p in self._trained()]
        torch._foreach_copy_(self._trained(), self._averaged)
        try:
            yield
        finally:
            torch._foreach_copy_(self._trained(), trained)

    def keep(self) -> None:
        """Give the module its averaged weights for good."""
        torch._foreach_copy_(self._trained(), self._averaged)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; all processes call it."""
        return {"average": [whole(average) for average in self.average], "updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        given = [cut(saved, own) for saved, own in zip(state["average"], self.average, strict=True)]
        torch._foreach_copy_(self._averaged, local(given))
        self.updates = state["updates"]

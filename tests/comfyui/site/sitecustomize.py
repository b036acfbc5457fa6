"""On the test server's PYTHONPATH: lets torchvision import beside a PyTorch that its compiled half was not built for.

A torchvision wheel built for CUDA cannot load its library beside a CPU-only PyTorch, and its import then dies on
`operator torchvision::nms does not exist`. ComfyUI needs only the pure-Python part, so it is enough to declare the two
operators, and only when the library really does not load.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_declared: Any = None


def _declare_operators(spec: ModuleSpec) -> None:
    global _declared
    import torch

    library = Path(spec.origin or "").with_name("_C.so")
    try:
        torch.ops.load_library(str(library))
        torch.ops.torchvision.nms  # noqa: B018 - raises when the library did not register it
    except (OSError, AttributeError):
        _declared = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class _BeforeTorchvision:
    """An import hook that acts once, when torchvision is first asked for, and finds nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            spec = importlib.util.find_spec("torchvision")
            if spec is not None:
                _declare_operators(spec)


sys.meta_path.insert(0, _BeforeTorchvision())  # type: ignore[arg-type]

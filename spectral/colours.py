"""The colours of charts: a model has its own wherever it is drawn, and all can be told apart with any colour vision.

Line colours are Okabe and Ito's; maps use viridis, and blue to orange where there is a middle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
#: Blue below the middle, orange above it, pale at it.
DIVERGING = ("#00497d", "#0072B2", "#73b2d9", "#c9dfee", "#f7f7f7", "#f6d9c0", "#eda36a", "#D55E00", "#913f00")

MODELS = {
    "data": "#000000",
    "reference": "#000000",
    "teacher": "#0072B2",
    "lite": "#E69F00",
    "student": "#D55E00",
}
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#8B6914", "#7F7F7F", "#332288", "#882255", "#999933")


def model_in(name: str) -> str | None:
    """The model of MODELS that is the first that a name speaks of: "emoji64-student" is a student; None for none."""
    return next((word for word in re.split(r"[\W_]+", name.lower()) if word in MODELS), None)


def of_names(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: its model's, unless another name has taken that, else a free one."""
    chosen: dict[str, str] = {}
    free = 0
    for name in names:
        model = model_in(name)
        own = None if model is None else MODELS[model]
        if own is None or own in chosen.values():
            own = OTHERS[free % len(OTHERS)]
            free += 1
        chosen[name] = own
    return chosen


def between(low: str, high: str, share: float) -> str:
    """The colour at a share, 0 to 1, of the way from one to the other."""
    ends = [[int(code[at : at + 2], 16) for at in (1, 3, 5)] for code in (low, high)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))


def sequence(count: int) -> list[str]:
    """So many colours along viridis, without its palest end, for curves that follow each other."""
    last = 0.85 * (len(VIRIDIS) - 1)
    made = []
    for index in range(count):
        place = last * index / max(count - 1, 1)
        low = min(int(place), len(VIRIDIS) - 2)
        made.append(between(VIRIDIS[low], VIRIDIS[low + 1], place - low))
    return made

"""What was recorded while samplers ran: kept by the sampler node, found again by the node that draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

Run = TypeVar("Run")


class Record(Generic[Run]):
    """Of every sampling that a MODEL took part in, the last one of each sampler node.

    Args:
        start: makes what a run records into.
    """

    def __init__(self, start: Callable[[], Run]) -> None:
        self._start = start
        self._runs: dict[str | None, tuple[str | None, Run]] = {}

    def __deepcopy__(self, memo: Any) -> Record[Run]:
        """Itself: clones of the MODEL, which the ComfyUI of 2024 copies deeply, go on recording here."""
        return self

    def current(self) -> Run:
        """That of the sampling that is going on; a prompt's first call at a node replaces what was there before."""
        prompt, node = executing()
        known = self._runs.get(node)
        if known is None or known[0] != prompt:
            self._runs.pop(node, None)
            known = self._runs[node] = (prompt, self._start())
        return known[1]

    def of(self, samplers: Iterable[str]) -> list[Run]:
        """What was recorded of these nodes, oldest first.

        For a prompt that no page waits for, ComfyUI of 2024 does not tell the node: then that of the last prompt.
        """
        unnamed = bool(self._runs) and list(self._runs)[-1] is None
        wanted = {None} if unnamed else set(samplers)
        return [run for node, (_, run) in self._runs.items() if node in wanted]


def executing() -> tuple[str | None, str | None]:
    """The prompt and the node that ComfyUI is working on."""
    try:
        from comfy_execution.utils import get_executing_context  # type: ignore[import-not-found]
    except ImportError:  # before the middle of 2025
        context = None
    else:
        context = get_executing_context()
    if context is not None:
        return context.prompt_id, context.node_id
    from server import PromptServer  # type: ignore[import-not-found]  # ComfyUI's; it is there once nodes run

    server = getattr(PromptServer, "instance", None)
    return getattr(server, "last_prompt_id", None), getattr(server, "last_node_id", None)


def traced_samplers(prompt: dict[str, Any], node: str, record: str) -> set[str]:
    """All nodes that lead to the input `samples` of `node`, and to which the recorder of its input `record` leads."""
    inputs = prompt.get(node, {}).get("inputs", {})
    traces = set(_linked({record: inputs.get(record)}))
    samplers = _upstream(prompt, {"samples": inputs.get("samples")})
    return {one for one in samplers if traces & _upstream(prompt, prompt[one].get("inputs", {}))}


def _upstream(prompt: dict[str, Any], inputs: dict[str, Any]) -> set[str]:
    """All nodes whose results reach one of these inputs."""
    found: set[str] = set()
    ahead = _linked(inputs)
    while ahead:
        node = ahead.pop()
        if node in prompt and node not in found:
            found.add(node)
            ahead += _linked(prompt[node].get("inputs", {}))
    return found


def _linked(inputs: dict[str, Any]) -> list[str]:
    """The nodes at the other end of links, [node, slot] each."""
    return [str(link[0]) for link in inputs.values() if isinstance(link, list) and len(link) == 2]

"""Many prompts in the queue of one server at once, and what became of each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .server import ComfyServer, Prompt, Run

#: Requests that are sent at the same time.
SENDERS = 8


def run_all(
    comfy: ComfyServer, prompts: Sequence[Prompt], *, timeout: float = 900.0, watch: Callable[[int], None] | None = None
) -> list[Run]:
    """Queue all prompts before the first is waited for; the server takes them in the order given.

    Args:
        timeout: seconds for all of them together.
        watch: called a few times a second with the number of prompts that are done.

    Returns:
        What the history says, in the order of `prompts`; refused ones have the answer as their error.

    Raises:
        RuntimeError: the server died, or the time ran out; the message holds the end of its log.
    """
    try:
        with ThreadPoolExecutor(SENDERS) as senders:
            answers = list(senders.map(lambda numbered: _queue(comfy, *numbered), enumerate(prompts)))
        taken = [answer["prompt_id"] for answer in answers if "prompt_id" in answer]
        deadline = time.monotonic() + timeout
        while left := _left(comfy):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{left} prompts are not done after {timeout} s.\n{comfy.log_tail()}")
            if watch is not None:
                watch(len(taken) - left)
            time.sleep(0.1)
        history = comfy.get("/history")
    except OSError as failure:
        raise RuntimeError(f"ComfyUI gave no result ({failure!r}).\n{comfy.log_tail()}") from failure
    return [_run(history[answer["prompt_id"]]) if "prompt_id" in answer else Run(error=answer) for answer in answers]


def _queue(comfy: ComfyServer, place: int, prompt: Prompt) -> dict[str, Any]:
    answer: dict[str, Any] = comfy.post("/prompt", {"prompt": prompt, "number": place})
    return answer


def _left(comfy: ComfyServer) -> int:
    """Prompts that wait or run."""
    return int(comfy.get("/prompt")["exec_info"]["queue_remaining"])


def _run(entry: dict[str, Any]) -> Run:
    """One entry of the history."""
    errors = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    return Run(prompt_id=entry["prompt"][1], outputs=entry["outputs"], error=errors[0] if errors else None)

"""A real ComfyUI server for the tests: start it, queue a prompt, wait for what it says, stop it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from PIL import Image

from .distribution import Distribution

Prompt = dict[str, dict[str, Any]]


@dataclass
class Run:
    """All that the server said about one queued prompt.

    Args:
        progress: (value, maximum) of every progress message, in order.
        previews: the preview images that arrived over the socket.
        outputs: node id → what the node put into its `ui`, cached nodes included.
        cached: the nodes that did not have to run.
        notices: what our nodes want the person at the page to know.
        error: the `execution_error` message, the validation answer, or None.
    """

    prompt_id: str = ""
    progress: list[tuple[int, int]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    notices: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    interrupted: bool = False

    @property
    def message(self) -> str:
        """The sentence that a person would read in the error dialog or at the red node; empty without an error."""
        if self.error is None:
            return ""
        if "node_errors" in self.error:
            reasons = [reason for node in self.error["node_errors"].values() for reason in node["errors"]]
            return "; ".join(f"{reason['message']}: {reason['details']}" for reason in reasons or [self.error["error"]])
        return str(self.error["exception_message"]).rstrip("\n")  # which newer versions append


class ComfyServer:
    """A ComfyUI process on a free port of 127.0.0.1; use it as a context manager.

    Args:
        distribution: what to start.
        log: file that takes everything the server prints; its end is shown when the server fails.
        arguments: further command-line flags of ComfyUI.
    """

    def __init__(self, distribution: Distribution, log: Path, arguments: Sequence[str] = ()) -> None:
        self.distribution = distribution
        self.log = log
        self.arguments = tuple(arguments)
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout: float = 180.0) -> None:
        """Start the process and wait until it answers; seconds.

        Raises:
            RuntimeError: it ended or stayed silent; the message holds the end of its log.
        """
        environment = dict(os.environ)
        site = str(Path(__file__).with_name("site"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (site, environment.get("PYTHONPATH"))))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.distribution.program, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/queue")
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start.\n{self.log_tail()}")

    def command(self) -> list[str]:
        """The command line of the server."""
        flags = ["--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--preview-method", "latent2rgb"]
        if self.distribution.modern:
            flags += ["--base-directory", str(self.distribution.base), "--disable-api-nodes"]
            flags += ["--database-url", f"sqlite:///{self.distribution.base / 'comfyui.db'}"]
        return [str(self.distribution.python), "main.py", *flags, *self.arguments]

    def stop(self) -> None:
        """End the process that `start` began, and no other."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log_tail(self, lines: int = 60) -> str:
        """The last lines that the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.is_file() else ""

    def get(self, path: str) -> Any:
        """The JSON at `path`, such as /object_info."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: Any) -> Any:
        """POST JSON; the JSON of the answer, of an answer with status 400 too, or None where the answer is empty."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refused:
            if refused.code != 400:
                raise
            text = refused.read()
        return json.loads(text) if text else None

    def image(self, output: dict[str, str]) -> Image.Image:
        """The picture behind one entry of a node's `ui["images"]`."""
        query = urllib.parse.urlencode({key: output[key] for key in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
            return Image.open(BytesIO(answer.read())).convert("RGB")

    def run(self, prompt: Prompt, *, timeout: float = 300.0, on_progress: Callable[[int], None] | None = None) -> Run:
        """Queue `prompt` in API format and wait until the server is done with it.

        Args:
            prompt: node id → {"class_type", "inputs"}.
            timeout: seconds.
            on_progress: called with each progress value, while the prompt runs.

        Raises:
            RuntimeError: the server died or the time ran out; the message holds the end of its log.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._run(prompt, on_progress), timeout))
        except (TimeoutError, aiohttp.ClientError, OSError) as failure:
            raise RuntimeError(f"ComfyUI gave no result ({failure!r}).\n{self.log_tail()}") from failure

    async def _run(self, prompt: Prompt, on_progress: Callable[[int], None] | None) -> Run:
        client = uuid.uuid4().hex
        run = Run()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_,
        ):
            answer = await asyncio.to_thread(self.post, "/prompt", {"prompt": prompt, "client_id": client})
            if "prompt_id" not in answer:
                run.error = answer
                return run
            run.prompt_id = answer["prompt_id"]
            async for message in socket_:
                if message.type == aiohttp.WSMsgType.BINARY:
                    run.previews.extend(_preview(message.data))
                elif message.type == aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    if _take(run, event["type"], event["data"]):
                        history = await asyncio.to_thread(self.get, f"/history/{run.prompt_id}")
                        run.outputs = history[run.prompt_id]["outputs"]
                        return run
                    if event["type"] == "progress" and on_progress is not None:
                        await asyncio.to_thread(on_progress, int(event["data"]["value"]))
        raise OSError("the socket closed")


def _take(run: Run, kind: str, data: dict[str, Any]) -> bool:
    """Note one message in `run`; True when it is the last one of this prompt."""
    if kind == "spectral_diffusion.notice":
        run.notices.append(data)
    if data.get("prompt_id") != run.prompt_id:
        return False
    if kind == "progress":
        run.progress.append((int(data["value"]), int(data["max"])))
    elif kind == "execution_cached":
        run.cached = list(data["nodes"])
    elif kind == "execution_error":
        run.error = data
    elif kind == "execution_interrupted":
        run.interrupted = True
    return kind == "executing" and data["node"] is None


def _preview(data: bytes) -> list[Image.Image]:
    """The picture in a binary message: event number (1 = preview), format number, then JPEG or PNG."""
    if int.from_bytes(data[:4], "big") != 1:
        return []
    return [Image.open(BytesIO(data[8:])).convert("RGB")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

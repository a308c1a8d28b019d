"""SGLang as its users start it: servers and the offline engine, in processes of their own, unmodified."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

with warnings.catch_warnings():  # what they say while they are imported is not ours to judge
    warnings.simplefilter("ignore")
    import openai
    import psutil
    import requests
    import torch

__all__ = [
    "CONFIGURATIONS",
    "Configuration",
    "Consumer",
    "Engine",
    "Server",
    "folder_of",
    "library",
    "sampling",
    "start",
]

MODEL_NAME = "consumer"
READY_S = 420  # the slowest compiles with Inductor, beside the others
REQUEST_S = 180
HERE = Path(__file__).resolve().parent

# Small enough for all of them on one GPU; fa3, the default attention on sm_90, is one that we do not provide.
COMMON = (
    *("--attention-backend", "triton", "--mem-fraction-static", "0.5", "--max-total-tokens", "32768"),
    *("--max-running-requests", "64", "--random-seed", "0", "--served-model-name", MODEL_NAME),
)
GRAPHS = ("--cuda-graph-max-bs", "48")


@dataclass(frozen=True)
class Configuration:
    """Flags of SGLang, and how far its log-probabilities may be from a float32 reference.

    The tolerances are about three times what the dtype alone does to this model: transformers on a CPU, in
    bfloat16, is off by 0.047 at most and 0.014 in the mean square, in float16 by 0.0055 and 0.0016. With an
    e5m2 cache SGLang's Triton kernels round queries and attention weights to e5m2, too, which the reference
    does not; rounding the cache alone changes a log-probability by up to 0.21.
    """

    name: str
    dtype: str
    flags: tuple[str, ...]
    worst: float
    rms: float
    kv_dtype: torch.dtype | None = None
    api_key: str | None = None
    is_engine: bool = False

    @property
    def samples_with_us(self) -> bool:
        """Whether sampling calls our functions: the backend named flashinfer calls sgl_kernel alone."""
        return "flashinfer" in self.flags

    @property
    def arguments(self) -> list[str]:
        key = () if self.api_key is None else ("--api-key", self.api_key)
        return [*COMMON, "--dtype", self.dtype, *self.flags, *key]


HALF = {"dtype": "float16", "worst": 0.02, "rms": 0.005}
BRAIN = {"dtype": "bfloat16", "worst": 0.15, "rms": 0.045}
E5M2 = {"dtype": "bfloat16", "worst": 0.6, "rms": 0.12, "kv_dtype": torch.float8_e5m2}
FLASHINFER = ("--sampling-backend", "flashinfer")
CHUNKED = ("--chunked-prefill-size", "2048")

CONFIGURATIONS = [
    Configuration("base", flags=("--disable-cuda-graph",), **HALF),
    Configuration("awq", flags=("--quantization", "awq", "--disable-cuda-graph"), **HALF),
    Configuration("engine", flags=GRAPHS, is_engine=True, **BRAIN),
    Configuration("graphs", flags=(*GRAPHS, *FLASHINFER, *CHUNKED), **BRAIN),
    Configuration("fp8-kv", flags=(*GRAPHS, "--kv-cache-dtype", "fp8_e5m2", "--disable-radix-cache"), **E5M2),
    Configuration(
        "compile", flags=(*GRAPHS, "--enable-torch-compile", "--torch-compile-max-bs", "2"), **BRAIN
    ),
    Configuration(
        "all",
        flags=(
            *("--quantization", "awq_marlin", "--kv-cache-dtype", "fp8_e5m2", *CHUNKED, *FLASHINFER),
            *("--enable-torch-compile", "--torch-compile-max-bs", "2", "--cuda-graph-max-bs", "8"),
            *("--disable-custom-all-reduce", "--disable-radix-cache"),
        ),
        api_key="not-a-secret",
        **E5M2,
    ),
]


class ConsumerError(Exception):
    """SGLang did not start or did not answer; the message ends with what it logged."""


class Consumer:
    """A process that runs SGLang; everything it prints goes to ``<out>/<name>.log``."""

    def __init__(self, configuration: Configuration, model: Path, out: Path) -> None:
        self.configuration = configuration
        self.model = model
        self.out = out
        self.log = out / f"{configuration.name}.log"
        self.started = time.monotonic()
        self.ready_s = 0.0
        self.command = self._command()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=out,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        raise NotImplementedError

    def generate(self, **request: Any) -> list[dict[str, Any]]:
        """SGLang's own request: ``input_ids`` is a list of prompts, and there is one answer for each."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the process and those it started; there is nothing left to lose."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def libraries(self) -> list[Path]:
        """The shared objects of torch and of sgl_kernel that its processes have mapped."""
        root = psutil.Process(self.process.pid)
        paths = set()
        for process in (root, *root.children(recursive=True)):
            try:
                paths |= {Path(entry.path) for entry in process.memory_maps()}
            except psutil.Error:  # a helper that has just ended
                continue
        return sorted(
            path
            for path in paths
            if path.name.startswith(("libtorch", "common_ops"))
            or (".so" in path.name and "sgl_kernel" in str(path))
        )

    def refused_calls(self) -> list[str]:
        """Lines of the log that tell of a call to a name of ``sgl_kernel.missing()``."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [
            line for line in lines if "NotProvidedError" in line or "not provided by this package" in line
        ]

    def failure(self, what: str) -> ConsumerError:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])
        return ConsumerError(
            f"{self.configuration.name}: {what}\n{' '.join(self.command)}\n{self.log}:\n{tail}"
        )


class Server(Consumer):
    """``python -m sglang.launch_server``, reached over HTTP."""

    def _command(self) -> list[str]:
        self.port = free_port()
        where = ["--model-path", str(self.model), "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "sglang.launch_server", *where, *self.configuration.arguments]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def headers(self) -> dict[str, str]:
        key = self.configuration.api_key
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    def wait(self) -> None:
        """Returns when ``/health`` says that the server is up."""
        while not self.ready_s and time.monotonic() - self.started < READY_S:
            if self.process.poll() is not None:
                raise self.failure(f"ended with code {self.process.returncode} before it was ready")
            try:
                with requests.get(self.url("/health"), timeout=30) as response:
                    if response.status_code == 200:
                        self.ready_s = round(time.monotonic() - self.started, 1)
                        return
            except requests.RequestException:
                pass
            time.sleep(1)
        if not self.ready_s:
            raise self.failure(f"not ready after {READY_S} s")

    def generate(self, **request: Any) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self.post("/generate", request).json()
        return answers

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        try:
            with requests.post(
                self.url(path), json=body, headers=self.headers, timeout=REQUEST_S
            ) as response:
                if response.status_code != 200:
                    raise self.failure(
                        f"{path}: expected 200, got {response.status_code}: {response.text[:500]}"
                    )
                return response
        except requests.RequestException as err:
            raise self.failure(f"{path}: {err}") from err

    @contextmanager
    def profile(self, folder: Path) -> Iterator[set[str]]:
        """Fills the set that it yields with the names of the GPU kernels that ran meanwhile."""
        names: set[str] = set()
        self.post("/start_profile", {"output_dir": str(folder), "activities": ["CPU", "GPU"]})
        yield names
        self.post("/stop_profile", {})
        events = self._trace(folder)["traceEvents"]
        names |= {event["name"] for event in events if event.get("cat") == "kernel"}

    def _trace(self, folder: Path) -> dict[str, Any]:
        """What SGLang writes some time after it has answered."""
        end = time.monotonic() + REQUEST_S
        while time.monotonic() < end:
            for path in folder.glob("**/*.trace.json.gz"):
                try:
                    trace: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
                except (EOFError, OSError, ValueError, zlib.error):  # not yet complete
                    continue
                return trace
            time.sleep(0.5)
        raise self.failure(f"no trace of the profiler in {folder} after {REQUEST_S} s")

    def openai(self) -> openai.OpenAI:
        """A client, to be used as a context."""
        key = self.configuration.api_key or "none"
        return openai.OpenAI(base_url=self.url("/v1"), api_key=key, timeout=REQUEST_S, max_retries=0)


class Engine(Consumer):
    """``sglang.Engine``, in ``_engine.py``; a line of JSON in a file is a request, in another an answer."""

    def _command(self) -> list[str]:
        self.requests, self.answers = self.out / "engine.requests", self.out / "engine.answers"
        self.requests.write_text("")
        self.answers.write_text("")
        paths = [str(self.requests), str(self.answers)]
        arguments = ["--model-path", str(self.model), *self.configuration.arguments]
        return [sys.executable, str(HERE / "_engine.py"), *paths, *arguments]

    def wait(self) -> None:
        self._line(0, READY_S)
        self.ready_s = self.ready_s or round(time.monotonic() - self.started, 1)

    def generate(self, **request: Any) -> list[dict[str, Any]]:
        count = len(self._lines())
        with self.requests.open("a") as stream:
            stream.write(json.dumps(request) + "\n")
        answers: list[dict[str, Any]] = json.loads(self._line(count, REQUEST_S))
        return answers

    def _lines(self) -> list[str]:
        return [line for line in self.answers.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def _line(self, index: int, limit_s: float) -> str:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            lines = self._lines()
            if len(lines) > index:
                return lines[index]
            if self.process.poll() is not None:
                raise self.failure(f"ended with code {self.process.returncode}")
            time.sleep(0.2)
        raise self.failure(f"no answer after {limit_s} s")


def library() -> Path:
    """The shared object of the sgl-kernel that this Python, and so its child processes, would import."""
    return folder_of("sgl_kernel") / "libsgl_kernel.so"


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConsumerError(f"{package}: expected to be installed; tests/consumer/run.sh says how")
    return Path(spec.origin).resolve().parent


def start(configuration: Configuration, model: Path, out: Path) -> Consumer:
    return (Engine if configuration.is_engine else Server)(configuration, model, out)


def sampling(tokens: int, **parameters: Any) -> dict[str, Any]:
    """Parameters of SGLang's request; greedy without others."""
    return {"max_new_tokens": tokens, "temperature": 0.0, **parameters}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

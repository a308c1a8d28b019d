"""What is wrong: the checks of ``debug``, on this machine, in an image or in a running container.

Each check is one command, run where the server would run, with what it found. A bundle holds them all for
a bug report, without secrets and without what identifies person or machine.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.deploy import log, service
from sgl_kernel_rebuild.deploy.state import Deployment

__all__ = ["Finding", "Place", "examine", "write_bundle"]

_TIMEOUT = 300
_LOG_LINES = 500
_MODULES = ("torch", "triton", "sgl_kernel", "sglang", "sglang.srt.server_args")
_NO_COMMAND = "No such command"

_IMPORT = "import {0} as m; print(getattr(m, '__version__', 'imported'), getattr(m, '__file__', ''))"
_SMOKE = """
import torch, sgl_kernel
device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.arange(-512, 512, dtype=torch.float32, device=device).reshape(4, 256).to(torch.bfloat16)
weight = torch.full((256,), 2.0, dtype=torch.bfloat16, device=device)
got = sgl_kernel.rmsnorm(x, weight, 1e-6).float()
wanted = 2 * x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
error = float((got - wanted).abs().max() / wanted.abs().max())
name = torch.cuda.get_device_name() if device == "cuda" else "the CPU path (no GPU is visible to torch)"
print(f"rmsnorm on {name}: largest relative error {error:.4f}")
raise SystemExit(0 if error < 0.01 else 1)
"""


@dataclass(frozen=True)
class Place:
    """Where the checks run: ``prefix`` comes before ``python …``; empty on this machine."""

    name: str
    prefix: tuple[str, ...] = ()
    python: str = sys.executable

    @classmethod
    def host(cls) -> Place:
        return cls("this machine")

    @classmethod
    def image(cls, engine: str, image: str, *, has_gpu: bool) -> Place:
        """An image: each check in a fresh container of it, without network."""
        gpu = ("--device", "nvidia.com/gpu=all") if engine == "podman" else ("--gpus", "all")
        options = ("--rm", "--network", "none", *(gpu if has_gpu else ()), "--entrypoint", "")
        return cls(f"image {image}", (engine, "run", *options, image), "python3")

    @classmethod
    def container(cls, engine: str, name: str) -> Place:
        """A running container."""
        return cls(f"container {name}", (engine, "exec", name), "python3")

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, *arguments]


@dataclass(frozen=True)
class Finding:
    """One check: ``verdict`` is ok, problem or absent (what it needs is not there)."""

    name: str
    verdict: str
    detail: str
    fix: str | None = None
    command: Sequence[str] = ()
    output: str = field(default="", repr=False)


def checks(place: Place, deployment: Deployment | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the command of every check."""
    python = place.python
    yield "doctor", place.command(python, "-m", "sgl_kernel_rebuild", "doctor", "--json")
    yield "nvidia-smi", place.command("nvidia-smi")
    for module in _MODULES:
        yield f"import {module}", place.command(python, "-c", _IMPORT.format(module))
    yield "sgl_kernel", place.command(python, "-m", "sgl_kernel", "--json")
    yield "smoke test", place.command(python, "-c", _SMOKE)
    yield "packages", place.command(python, "-m", "pip", "list", "--format", "json")
    if deployment is not None:
        yield "server log", service.logs_command(deployment, _LOG_LINES, is_followed=False)


def examine(
    place: Place,
    deployment: Deployment | None = None,
    *,
    progress: Callable[[Sequence[str]], None] = lambda command: None,
) -> list[Finding]:
    """Run every check and return what each found, doctor's findings one by one."""
    findings: list[Finding] = []
    for name, command in checks(place, deployment):
        progress(command)
        code, output = _run(command)
        if name == "doctor":
            findings += _read_doctor(code, output, command)
        elif name == "server log":
            findings.append(_read_log(output, command))
        elif code is None:
            findings.append(Finding(name, "absent", output, None, command, output))
        elif code == 0:
            lines = output.strip().splitlines()
            detail = "" if name in ("sgl_kernel", "packages", "nvidia-smi") else lines[-1] if lines else ""
            findings.append(Finding(name, "ok", detail, None, command, output))
        else:
            error = log.server_error(output)
            findings.append(
                Finding(name, "problem", error.splitlines()[-1], log.explain(output), command, output)
            )
    return findings


def write_bundle(
    path: Path,
    place: Place,
    findings: Sequence[Finding],
    deployment: Deployment | None,
    redact: Callable[[str], str],
) -> None:
    """Write a ``.tar.gz`` with the report, every output and the deployment's files; the key's is left out.

    Every text goes through ``redact``. The file is whole or not there, and its owner's alone.
    """
    members = {
        "report.json": json.dumps({"place": place.name, "findings": [asdict(f) for f in findings]}, indent=1)
    }
    for number, finding in enumerate(findings):
        name = finding.name.replace(" ", "-").replace("/", "-")
        members[f"output/{number:02d}-{name}.txt"] = finding.output
    if deployment is not None:
        for file in (deployment.server_file, deployment.env_file, deployment.record_file):
            if file.exists():
                members[f"deployment/{file.name}"] = file.read_text(encoding="utf-8", errors="replace")
    descriptor, temporary = tempfile.mkstemp(prefix=".bundle-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(mode="w:gz", fileobj=stream) as archive:
            for name, text in members.items():
                data = redact(text).encode()
                info = tarfile.TarInfo(f"sgl-kernel-debug/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _run(command: Sequence[str]) -> tuple[int | None, str]:
    """Return exit code and output; None and why for a command that cannot be run or does not end."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        return None, f"{command[0]} is not on the PATH"
    except subprocess.TimeoutExpired:
        return 124, f"no end within {_TIMEOUT} s"
    return done.returncode, done.stdout


def _read_doctor(code: int | None, output: str, command: Sequence[str]) -> list[Finding]:
    """Return doctor's findings. It prints one JSON object with ``findings`` of id, severity, title, fix."""
    if code is None or _NO_COMMAND in output or "No module named sgl_kernel_rebuild" in output:
        return [Finding("doctor", "absent", "the doctor is not installed there", None, command, output)]
    try:
        document: Any = json.loads(output[output.index("{") : output.rindex("}") + 1])
        listed = document["findings"]
        found = [
            Finding(
                f"doctor {item['id']}",
                "ok" if str(item["severity"]).lower() in ("ok", "info", "note") else "problem",
                str(item["title"]),
                str(item["fix"]) if item.get("fix") else None,
                command,
                json.dumps(item, indent=1),
            )
            for item in listed
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        return [Finding("doctor", "problem", f"expected its report, got {err!r}", None, command, output)]
    return found or [Finding("doctor", "ok", "nothing found", None, command, output)]


def _read_log(output: str, command: Sequence[str]) -> Finding:
    error = log.find_error(output)
    if error is None:
        return Finding("server log", "ok", "no error in it", None, command, output)
    return Finding("server log", "problem", error.splitlines()[-1], log.explain(error), command, output)

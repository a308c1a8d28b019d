"""The front door: `nox -s wheel` builds, proves and publishes; `nox -s tests` tests factory and wheel.

What the sessions do lives in the package sgl_kernel_rebuild; arguments after `--` reach it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["wheel"]
nox.options.reuse_existing_virtualenvs = True

# Another folder keeps another build apart: published files never change.
WHEELHOUSE = os.environ.get("SGLK_WHEELHOUSE", "wheelhouse")
FACTORY = "python/sgl_kernel_rebuild"
PROJECT = nox.project.load_toml("pyproject.toml")
BUILD_REQUIRES = PROJECT["build-system"]["requires"]
# What SGLang asks for; the newest build of it is the one in the wheelhouse.
SGL_KERNEL = "sgl-kernel=={}".format(PROJECT["project"]["version"].partition("+")[0])
# The oldest torch that the wheel is for, and a late one.
TORCH = ["2.7.0", "2.13.0"]


def install(session: nox.Session, *groups: str, requires: list[str] = BUILD_REQUIRES) -> None:
    """Install the factory from this tree, dependency groups and, by default, what builds the wheel."""
    session.install("-q", FACTORY, *requires, *nox.project.dependency_groups(PROJECT, *groups))


def require_gpu(session: nox.Session) -> None:
    """Fail with a sentence where no CUDA device answers."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        is_ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except OSError:
        is_ready = False
    if not is_ready or count.value == 0:
        session.error(f"{session.name} needs a CUDA GPU, and libcuda.so.1 finds none on this machine")


def install_wheel(session: nox.Session, *packages: str) -> None:
    """Install sgl-kernel from the wheelhouse, as a user would; with --no-venv take what is there."""
    if session.virtualenv.is_sandboxed:
        session.install("-q", "--find-links", WHEELHOUSE, SGL_KERNEL, *packages)
        # Another build may have the same version.
        session.install("-q", "--force-reinstall", "--no-deps", "--find-links", WHEELHOUSE, SGL_KERNEL)


def install_browser(session: nox.Session) -> None:
    """Make sure of a Chromium for the tests of pages: the system's, or the one that Playwright fetches."""
    if shutil.which("chromium") is None:
        session.run("playwright", "install", "chromium")


def build_wheel(session: nox.Session, *arguments: str) -> list[str]:
    """Build and prove the wheel and the factory's own; nothing is published."""
    install(session, "build")
    raw = Path(session.create_tmp()).resolve() / "raw"
    proven = raw.with_name("proven")
    for folder in (raw, proven):
        shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(raw), *arguments)
    session.run("sgl-kernel-rebuild", "gate", *map(str, raw.glob("*.whl")), "--output", str(proven))
    session.run(
        "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(proven), FACTORY, silent=True
    )
    return sorted(map(str, proven.glob("*.whl")))


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, prove it, publish it; arguments go to the build: -- -C cmake.define.SGLK_ARCHS=120"""
    wheels = build_wheel(session, *session.posargs)
    session.run("sgl-kernel-rebuild", "publish", *wheels, "--index", WHEELHOUSE)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Build once more, elsewhere and without the cache: the index takes it only if it has the same bytes."""
    index = Path(WHEELHOUSE).resolve()
    elsewhere = Path(session.create_tmp()).resolve() / "another" / "folder"
    shutil.rmtree(elsewhere, ignore_errors=True)
    shutil.copytree(
        ".", elsewhere, ignore=shutil.ignore_patterns(".*", "build", "dist", "wheelhouse"), symlinks=True
    )
    session.env["SGLK_CACHE_DIR"] = str(elsewhere / "cache")
    session.chdir(elsewhere)
    session.run("sgl-kernel-rebuild", "publish", *build_wheel(session), "--index", str(index))


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that needs no GPU: unit, native, the same bytes again, and the wheel under each torch."""
    for name in ("unit", "native", "reproduce", *(f"wheel_tests(torch='{torch}')" for torch in TORCH)):
        session.notify(name, session.posargs)


@nox.session
def unit(session: nox.Session) -> None:
    """The factory: seconds, no build."""
    install(session, "unit")
    install_browser(session)
    session.run("python", "-m", "pytest", "tests/unit", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damage files for the readers: -- CASES of each of four kinds; counts go to tests/fuzz_result.json."""
    install(session, "unit")
    session.env["SGLK_FUZZ_CASES"] = session.posargs[0] if session.posargs else "26000"
    session.env["SGLK_FUZZ_RESULT"] = str(Path("tests/fuzz_result.json").resolve())
    session.run("python", "-m", "pytest", "tests/unit/gate/test_fuzz.py", "--hypothesis-seed=1")


@nox.session
def native(session: nox.Session) -> None:
    """The C++ logic, against a torch of the tests' own."""
    install(session, "native")
    session.run("python", "-m", "pytest", "tests/native", *session.posargs)


@nox.session
@nox.parametrize("torch", TORCH)
def wheel_tests(session: nox.Session, torch: str) -> None:
    """The published wheel, installed from the wheelhouse under a real torch, on the CPU."""
    session.env["SGLK_WHEELHOUSE"] = str(Path(WHEELHOUSE).resolve())
    groups = nox.project.dependency_groups(PROJECT, "wheel", "remote")
    session.install("-q", f"torch=={torch}", FACTORY, *groups)
    install_wheel(session, "--upgrade", f"torch=={torch}")
    folders = ["tests/wheel", "tests/imports", "tests/consumer/test_model.py"]
    session.run("python", "-m", "pytest", *folders, *session.posargs)


@nox.session
@nox.parametrize("torch", TORCH)
def imports(session: nox.Session, torch: str) -> None:
    """Load published wheels under a CUDA build of torch and hold the result against the audit."""
    remote = nox.project.dependency_groups(PROJECT, "remote")
    session.install("-q", f"torch=={torch}", FACTORY, *remote, env={"PIP_FIND_LINKS": ""})
    output = f"tests/imports/torch-{torch}.json"
    session.run("python", "-m", "tests.imports", *session.posargs, "--output", output)


@nox.session
def gpu_tests(session: nox.Session) -> None:
    """The kernels on a GPU, against float64 references; with --no-venv in the Python that is there."""
    require_gpu(session)
    install_wheel(session, *nox.project.dependency_groups(PROJECT, "gpu"))
    session.run("python", "-m", "pytest", "tests/gpu", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time every op on a GPU; results and report go to the folder named after -- (default build/bench)."""
    require_gpu(session)
    install_wheel(session, *nox.project.dependency_groups(PROJECT, "bench"))
    session.run("python", "-m", "benchmarks.run", *(session.posargs or ["build/bench"]))


@nox.session
def consumer(session: nox.Session) -> None:
    """Unmodified SGLang on the wheel, tested and timed on a GPU; results go to the folder named after --."""
    require_gpu(session)
    session.install("-q", *nox.project.dependency_groups(PROJECT, "consumer"))
    session.env["SGLK_WHEELHOUSE"] = WHEELHOUSE
    session.run("tests/consumer/run.sh", *(session.posargs or ["build/consumer"]), external=True)


@nox.session
def audit(session: nox.Session) -> None:
    """Which torch releases fit the published wheels, or the targets named after --."""
    install(session, requires=[])
    targets = session.posargs or [str(path) for path in sorted(Path(WHEELHOUSE).glob("sgl_kernel-*.whl"))]
    session.run("sgl-kernel-rebuild", "audit", *targets)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, mypy and clang-format."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    sources = session.run("git", "ls-files", "*.cpp", "*.h", "*.cu", "*.cuh", external=True, silent=True)
    session.run("clang-format", "--dry-run", "-Werror", *str(sources).split())

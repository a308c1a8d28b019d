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
    is_contained = arguments[:1] == ("--container",)
    install(session, "build", *(["container"] if is_contained else []))
    raw = Path(session.create_tmp()).resolve() / "raw"
    proven = raw.with_name("proven")
    for folder in (raw, proven):
        shutil.rmtree(folder, ignore_errors=True)
    if is_contained:
        build_in_container(session, raw, *arguments[1:])
    else:
        session.run("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(raw), *arguments)
    session.run("sgl-kernel-rebuild", "gate", *map(str, raw.glob("*.whl")), "--output", str(proven))
    session.run(
        "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(proven), FACTORY, silent=True
    )
    return sorted(map(str, proven.glob("*.whl")))


def build_in_container(session: nox.Session, output: Path, image: str | None = None) -> None:
    """Build by cibuildwheel; an image named, one of deploy/Dockerfile.manylinux-cuda, needs no network."""
    if "CIBW_CONTAINER_ENGINE" not in session.env and not shutil.which("docker"):
        session.env["CIBW_CONTAINER_ENGINE"] = "podman"
    if image:
        session.env["CIBW_MANYLINUX_X86_64_IMAGE"] = image
        session.env["CIBW_BUILD_FRONTEND"] = "build; args: --no-isolation"
    tree = copy_tree(session)
    session.run("cibuildwheel", "--platform", "linux", "--output-dir", str(output), str(tree))


def copy_tree(session: nox.Session) -> Path:
    """Copy what belongs to the project to another folder."""
    elsewhere = Path(session.create_tmp()).resolve() / "another" / "folder"
    shutil.rmtree(elsewhere, ignore_errors=True)
    left_out = shutil.ignore_patterns(".*", "build", "dist", "wheelhouse")
    shutil.copytree(".", elsewhere, ignore=left_out, symlinks=True)
    return elsewhere


def use_podman(session: nox.Session, *arguments: str) -> list[str]:
    """Bootstrap the base images that cannot be pulled; return what a build in them needs."""
    certificate = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    secret = ["--secret", f"id=ca,src={certificate}"] if certificate else []
    session.env["CONTAINERS_CONF"] = str(Path("tests/container/containers.conf").resolve())
    session.run("tests/container/bootstrap.sh", *secret, *arguments, external=True)
    return secret


def podman_build(session: nox.Session, name: str, *arguments: str) -> None:
    base = "--build-arg=BASE_IMAGE=localhost/sglk-manylinux"
    options = ("--format=docker", f"--tag=localhost/sglk-{name}", base)
    session.run("podman", "build", *options, *arguments, external=True)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, prove it, publish it; arguments go to the build: -- -C cmake.define.SGLK_ARCHS=120

    -- --container [IMAGE] builds in a manylinux container, by docker or podman.
    """
    wheels = build_wheel(session, *session.posargs)
    session.run("sgl-kernel-rebuild", "publish", *wheels, "--index", WHEELHOUSE)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Build once more, elsewhere and without the cache: the index takes it only if it has the same bytes."""
    index = Path(WHEELHOUSE).resolve()
    elsewhere = copy_tree(session)
    session.env["SGLK_CACHE_DIR"] = str(elsewhere / "cache")
    session.chdir(elsewhere)
    session.run("sgl-kernel-rebuild", "publish", *build_wheel(session), "--index", str(index))


@nox.session
def container(session: nox.Session) -> None:
    """Build in a stand-in manylinux container, without network: the index takes the same bytes alone.

    Then deploy a small image in a real container. Device code comes from the cache; -- --no-cache compiles
    it in the container.
    """
    secret = use_podman(session)
    install(session, "container", "unit")
    engine = "podman; create_args: --network=none"
    if "--no-cache" not in session.posargs:
        where = "from sgl_kernel_rebuild.toolchain import Cache; print(Cache.from_environment().directory)"
        engine += f" --volume={str(session.run('python', '-c', where, silent=True)).strip()}:/device-code"
        session.env["CIBW_ENVIRONMENT"] = "SGLK_CACHE_DIR=/device-code"
    session.env["CIBW_CONTAINER_ENGINE"] = engine
    podman_build(session, "manylinux-cuda", "--file=deploy/Dockerfile.manylinux-cuda", *secret, ".")
    wheels = build_wheel(session, "--container", "localhost/sglk-manylinux-cuda")
    session.run("sgl-kernel-rebuild", "publish", *wheels, "--index", WHEELHOUSE)
    # podman's cache of layers does not see what is in a volume.
    volume = f"--volume={Path(wheels[0]).parent}:/wheelhouse:ro"
    small = ("--no-cache", "--file=tests/container/Dockerfile.small", volume, *secret, "tests")
    podman_build(session, "small", *small)
    session.run("python", "-m", "pytest", "tests/container")


@nox.session
def image(session: nox.Session) -> None:
    """Build the SGLang image whole, on a bootstrapped base with PyPI's torch, and try it as its user."""
    secret = use_podman(session)
    install(session, requires=[])
    tag = "localhost/sglang:rtx5090-source"
    options = ["--base", "localhost/sglk-base", "--torch", "cu126", "--tag", tag, "--engine", "podman"]
    certificate = ["--ca", secret[1].partition("src=")[2]] if secret else []
    session.run("sgl-kernel-rebuild", "image", "build", *options, *certificate)
    session.run("tests/container/try_image.sh", tag, external=True)


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
    """Load published wheels under a CUDA build of torch and hold the result against the audit.

    -- REQUIREMENT… names other wheels than those recorded. Wheels for the other CUDA get its libraries.
    """
    remote = nox.project.dependency_groups(PROJECT, "remote")
    # Equal to the letter: not the build for CPUs, 2.13.0+cpu, that pip may be configured to find.
    session.install("-q", f"torch==={torch}", FACTORY, *remote)
    other = Path(session.create_tmp()).resolve() / "cuda"
    suffix = ">=13,<14" if torch == "2.7.0" else "-cu12"
    libraries = [f"nvidia-{name}{suffix}" for name in ("cuda-runtime", "cuda-nvrtc", "cublas", "nvjitlink")]
    session.install("-q", "--upgrade", "--target", str(other), "--no-deps", *libraries)
    output = f"tests/imports/torch-{torch}.json"
    options = ("--libraries", str(other), "--output", output)
    session.run("python", "-m", "tests.imports", *session.posargs, *options)


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
def lock(session: nox.Session) -> None:
    """Write the image's requirements with hashes (torch's own of +cu128, which PyPI lacks, stay)."""
    session.install("-q", "uv")
    folder = Path("deploy/requirements")
    tool = ["uv", "pip", "compile", "-q", "--generate-hashes", "--no-header", "--no-annotate"]
    tool += ["--no-emit-index-url", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_35"]
    torch = (folder / "torch-cu126.in").read_text().splitlines()
    left_out = [f"--no-emit-package={line.partition('==')[0]}" for line in torch]
    builders = Path(session.create_tmp()) / "wheel.in"
    builders.write_text("\n".join([*BUILD_REQUIRES, *nox.project.dependency_groups(PROJECT, "build")]))
    session.run(*tool, "--no-deps", f"{folder}/torch-cu126.in", "-o", f"{folder}/torch-cu126.txt")
    constraint = ["--constraint", f"{folder}/torch-cu126.in", *left_out]
    session.run(
        *tool, f"{folder}/sglang.in", f"{FACTORY}/pyproject.toml", *constraint, "-o", f"{folder}/sglang.txt"
    )
    session.run(*tool, str(builders), "-o", f"{folder}/wheel.txt")
    cu128, beside = folder / "torch-cu128.txt", Path(session.create_tmp()) / "torch-cu128.txt"
    session.run(*tool, "--no-deps", f"{folder}/torch-cu128.in", "-o", str(beside))
    own = cu128.read_text().partition("nvidia-cublas-cu12==")[0]
    cu128.write_text(own + beside.read_text())


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, mypy, shellcheck, hadolint, the schemas of compose and workflow files, clang-format."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    scripts = (path for folder in ("scripts", "deploy", "tests") for path in Path(folder).rglob("*.sh"))
    session.run("shellcheck", *map(str, sorted(scripts)))
    dockerfiles = [*Path("deploy").glob("Dockerfile.*"), *Path("tests").rglob("Dockerfile.*")]
    session.run("hadolint", *map(str, sorted(dockerfiles)))
    compose = ["deploy/docker-compose.sglang-source.yml", ".github/workflows/wheels.yml"]
    for kind, path in zip(["compose-spec", "github-workflows"], compose, strict=True):
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{kind}", path)
    sources = session.run("git", "ls-files", "*.cpp", "*.h", "*.cu", "*.cuh", external=True, silent=True)
    session.run("clang-format", "--dry-run", "-Werror", *str(sources).split())

"""The kernels of marlin_gemm run on the host, against double: what every GPU runs, and sm_90a's own.

``simt`` stands for the GPU: its threads are fibers, and mma, wgmma, cp.async, barriers do what PTX says.
Races in shared memory show (simt.h). What cannot: what the compilers make of the source, and time.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ._build import CSRC, CompilerError, run_compiler

SIMT = Path(__file__).resolve().parent / "simt"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
WRONG = "of the error allowed"
RACE = "a race"
ORDERED = ("u4_act_order_m64", "u8_act_order_m64")
OF_128 = (  # groups of 128 rows alone
    *("u4_m8_group", "u4_m8_long", "u4_m8_narrow", "u4_m8_narrow_long", "u4_m16_long", "u4_m32_group"),
    *("u4_m32_long", "u4_m64_group", "u4_m64_wide", "u4_m128_long"),
)
TILES = (
    *("u4_m8", "u4_m8_deep", "u4_m16", "u4_m16_deep", "u4_m32", "u4_m32_deep", "u4_m64", "u4_m128"),
    *("u8_m16", "u8_m64", "fp8_m16", "fp8_m64", *ORDERED, *OF_128),
)
SM90_OF_128 = ("sm90_u4_m16_group", "sm90_u4_m16_narrow", "sm90_u4_m32_group", "sm90_u4_m32_narrow")
SM90_TILES = ("sm90_u4_m32", "sm90_u4_m64", "sm90_u4_m128", *SM90_OF_128)


def build(folder: Path, edit: tuple[str, str, str] | None = None) -> Path:
    """The program of product.cpp: the kernel's own files, but for simt's mma.cuh and wgmma.cuh in place of
    theirs, and for an edit: in a file, one text for another."""
    (folder / "common").mkdir()
    kernels = CSRC / "kernels"
    links = {source.relative_to(kernels): source for source in kernels.glob("marlin_gemm*")}
    for root in (kernels, SIMT):
        links |= {source.relative_to(root): source for source in root.glob("common/*.cuh")}
    for name, source in links.items():
        (folder / name).symlink_to(source)
    if edit is not None:
        name, old, new = edit
        text = (folder / name).read_text()
        assert text.count(old) == 1
        (folder / name).unlink()
        (folder / name).write_text(text.replace(old, new))
    program = folder / "product"
    flags = ["-std=c++20", "-O1", *WARNINGS, "-rdynamic", *(f"-I{path}" for path in (folder, SIMT, CSRC))]
    try:
        run_compiler([*flags, str(SIMT / "product.cpp"), "-o", str(program), "-ldl"])
    except CompilerError as err:
        pytest.fail(str(err), pytrace=False)
    return program


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("simt"))


def run(program: Path, *cases: tuple[str | int, ...]) -> None:
    """Runs all at once, each with the arguments of product.cpp."""
    started = [
        subprocess.Popen([str(program), *map(str, case)],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for case in cases
    ]  # fmt: skip
    for case, process in zip(cases, started, strict=True):
        said, _ = process.communicate()
        assert process.returncode == 0, f"{case}: {said}"


def kernel(tile: str, dtype: str) -> str:
    path = "sm90_" if tile in SM90_TILES else ""
    return f"marlin_gemm_{path}{dtype}_{tile.removeprefix(path)}"


def tokens_of(tile: str) -> int:
    return int(re.findall(r"_m(\d+)", tile)[0])


def test_every_kernel_is_run(native: Any) -> None:
    assert {shape[0] for shape in native.marlin_gemm.shapes} == {*TILES, "gather"}
    assert {f"sm90_{shape[0]}" for shape in native.marlin_gemm.sm90_shapes} == {*SM90_TILES}


@pytest.mark.parametrize(
    ("tile", "group"),
    [
        (tile, group)
        for tile in (*TILES, *SM90_TILES)
        for group in ((128,) if tile in (*OF_128, *SM90_OF_128) else (0, 32, 64, 128))
        if group > 0 or tile not in ORDERED
    ],
)
def test_a_product(product: Path, tile: str, group: int) -> None:
    """Several tiles, cut into pieces that blocks share; tokens, columns and rows that fill no tile."""
    tokens = tokens_of(tile)
    run(
        product,
        (kernel(tile, "bf16"), tokens + 1, 320, 640, group, int("u4_m" in tile), 5, 1),
        (kernel(tile, "f16"), tokens // 2 + 1, 192, 384, group, 0, 2, 2),
    )


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("tile", ["u4_m8", "u4_m16", "u4_m32", "u4_m64_group", "u4_m64_wide", *SM90_TILES])
def test_however_many_blocks(product: Path, tile: str, blocks: int) -> None:
    """From one for all to many that share a tile."""
    run(product, (kernel(tile, "bf16"), 3, 576, 1024, 128, 1, blocks, blocks))


@pytest.mark.parametrize(
    "tile",
    [
        *("u4_m8", "u4_m8_group", "u4_m8_long", "u4_m8_narrow", "u4_m16", "u4_m32", "u4_m64", "u4_m128"),
        *SM90_TILES,
    ],
)
def test_tiles_shared_evenly(product: Path, tile: str) -> None:
    """Two by five blocks each; the first has more units."""
    run(product, (kernel(tile, "bf16"), min(20, tokens_of(tile)), 512, 4096, 128, 1, 10, 1))


@pytest.mark.parametrize("blocks", [2, 3, 4])
@pytest.mark.parametrize("tile", ["u4_m128", "u4_m128_long", "u8_m64", "u4_act_order_m64", "sm90_u4_m128"])
def test_tiles_taken_in_turn(product: Path, tile: str, blocks: int) -> None:
    """Eight tiles: all by 2 and 4 blocks; by 3 the first three, then the rest in pieces."""
    run(product, (kernel(tile, "bf16"), 4 * tokens_of(tile), 512, 384, 128, int("u4_m" in tile), blocks, 1))


@pytest.mark.parametrize("blocks", [5, 16, 17, 31, 32])
@pytest.mark.parametrize("tile", SM90_TILES)
def test_many_parts_are_added_up_a_tree(product: Path, tile: str, blocks: int) -> None:
    """Of 128 tokens more than 4, of 64 more than 16, of fewer tokens more than 31."""
    run(product, (kernel(tile, "f16"), min(20, tokens_of(tile)), 256, 4096, 128, 0, blocks, 1))


# Where a GPU's copies and products are mostly there in time, and its lanes mostly together, these never are.
@pytest.mark.parametrize(("file", "old", "new", "case", "message"), [
    (
        "marlin_gemm_copy.cuh",
        "wait_copies<C::kStages - 2>",  # a unit is read before it is there
        "wait_copies<C::kStages - 1>",
        ("marlin_gemm_bf16_u4_m16", 3, 320, 640, 128, 1, 4, 1),
        RACE,
    ),
    (
        "marlin_gemm_copy.cuh",
        "wait_copies<C::kStages - 1>",  # or the first, with all stages on their way
        "wait_copies<C::kStages>",
        ("marlin_gemm_bf16_u4_m8_group", 3, 320, 640, 128, 1, 4, 1),
        RACE,
    ),
    (
        "marlin_gemm_sm90.cuh",
        "wait_products<C::kBuffers - 1>",  # weights are made anew while products still read them
        "wait_products<C::kBuffers>",
        ("marlin_gemm_sm90_bf16_u4_m64", 50, 320, 640, 128, 1, 4, 1),
        WRONG,
    ),
    (
        "marlin_gemm_sm90.cuh",
        "batch == 0 && done != 0) release(done);",  # a stage is filled anew while products still read it
        "batch == 1) release(stage.empty());",
        ("marlin_gemm_sm90_bf16_u4_m128", 100, 320, 2048, 128, 1, 2, 1),
        RACE,
    ),
    (
        "marlin_gemm_sm90.cuh",
        "batch == 0 && done != 0) release(done);",  # nor is one filled that is not given back
        "batch == 0 && done > ring.base + C::kTile.stage_bytes()) release(done);",
        ("marlin_gemm_sm90_bf16_u4_m128", 100, 320, 2048, 128, 1, 2, 1),
        "every thread waits",
    ),
    (
        "marlin_gemm_sm90_copy.cuh",
        "    parity ^= wraps;",  # a stage is filled, and read, in the next round before it is free, or full
        "",
        ("marlin_gemm_sm90_bf16_u4_m16_narrow", 16, 640, 4096, 128, 1, 2, 1),
        "more arrivals",
    ),
    (
        "marlin_gemm_sm90_copy.cuh",
        "!= (1 << (blocks - 1)) - 1)",  # parts are added up before they are there
        "< 0)",
        ("marlin_gemm_sm90_bf16_u4_m32", 20, 256, 4096, 128, 1, 30, 1),
        WRONG,
    ),
    (
        "marlin_gemm_sm90_sums.cuh",
        "load_acquire(p.arrivals + block) >> child & 1",
        "load_acquire(p.arrivals + block) & 1",
        ("marlin_gemm_sm90_bf16_u4_m64", 20, 256, 4096, 128, 1, 30, 1),
        WRONG,
    ),
    (
        "marlin_gemm_sm90.cuh",
        "  __syncwarp();",  # a stage is filled anew while other lanes than the one that arrives may read it
        "",
        ("marlin_gemm_sm90_bf16_u4_m16_group", 16, 320, 2048, 128, 1, 2, 1),
        RACE,
    ),
    (
        "marlin_gemm_copy.cuh",
        "  team_barrier<C>(place.team);",  # other threads' copies are read
        "  (void)place;",
        ("marlin_gemm_bf16_u4_m8", 3, 320, 640, 128, 1, 4, 1),
        RACE,
    ),
], ids=[
    "copies", "first", "products", "stages", "release", "parity", "parts", "tree", "lanes", "barrier"
])  # fmt: skip
def test_a_wait_too_short_or_too_long_shows(
    tmp_path: Path, file: str, old: str, new: str, case: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        run(build(tmp_path, (file, old, new)), case)

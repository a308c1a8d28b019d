"""``python -m sgl_kernel --plan``: what would be launched on a GPU that is not here."""

from __future__ import annotations

import json

import pytest
from sgl_kernel import _plan
from sgl_kernel.__main__ import main


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "RTX 5090: sm_120, 170 multiprocessors, 99 KB a block, 1792 GB/s, 209.5 TFLOP/s"
    assert "not measured" in lines[1]
    rows = [line for line in lines if line.startswith(tuple(_plan.LAYERS))]
    assert len(rows) == len(_plan.LAYERS) * len(_plan.TOKENS)
    assert all("sm90" not in row and len(row) <= 110 for row in rows)


def test_json_of_another_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "h200", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["measured"] is False
    assert document["gpu"]["name"] == "H200"
    kernels = {(row["layer"], row["tokens"]): row["kernel"] for row in document["plans"]}
    assert kernels["gate_up", 1] == "marlin_gemm_bf16_u4_m8_long"
    assert kernels["gate_up", 4096].startswith("marlin_gemm_sm90_bf16_u4_m")


@pytest.mark.parametrize("gpu", _plan.GPUS, ids=lambda gpu: gpu.name)
def test_a_launch_fits_its_gpu(gpu: _plan.Gpu) -> None:
    for row in _plan.plans(gpu)["plans"]:
        assert 0 < row["blocks"] <= gpu.multiprocessors
        assert row["shared_bytes"] <= gpu.shared_memory
        assert row["tiles"] >= row["blocks"] or row["is_split"]
        assert row["memory_us"] > 0 < row["tensor_us"]


def test_the_roofline() -> None:
    # 64 columns of 128 rows: 4096 bytes, 64 scales, 64 zero points of 4 bits; 2 tokens, 2 x 64 results.
    gpu = _plan.Gpu("one", 80, 1, 99 << 10, memory=1e-3, tensor=1e-6)
    found = _plan.plan(gpu, 2, 64, 128)
    assert found["memory_us"] == 4096 + 64 * 2 + 32 + 2 * 2 * (64 + 128)
    assert found["tensor_us"] == 2 * 2 * 64 * 128


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--plan", "RTX 9090"])
    assert stop.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert message.endswith(
        "--plan: expected one of " + ", ".join(g.name for g in _plan.GPUS) + ", got 'RTX 9090'"
    )
    for shape, error in (
        ((0, 64, 128), "size_m, size_n: expected at least 1, got 0, 64"),
        ((1, 100, 128), "size_n: expected a multiple of 64, got 100"),
        ((1, 64, 100), "size_k: expected a positive multiple of 128, got 100"),
        ((1 << 40, 64, 128), r"expected less than 2\^31 units of tiles, got 1099511627776, 64, 128"),
        ((1, 1 << 25, 128), r"expected less than 2\^31 units of tiles, got 1, 33554432, 128"),
    ):
        with pytest.raises(ValueError, match=f"gptq_marlin_gemm: .*{error}"):
            _plan.plan(_plan.GPUS[0], *shape)

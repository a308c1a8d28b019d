"""What ptxas says about kernels."""

from __future__ import annotations

from sgl_kernel_rebuild.toolchain import Resources
from sgl_kernel_rebuild.toolchain._ptxas import describe_excess, other_lines, parse_resources

# The forms that NVRTC 12.8, nvcc 13.0 and older assemblers print.
LOG = """\
norm.cu(3): warning #177-D: variable "x" was declared but never referenced
ptxas info    : 4 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function 'rmsnorm_bf16' for 'sm_90a'
ptxas info    : Function properties for rmsnorm_bf16
ptxas         .     160 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 34 registers, used 1 barriers, 176 bytes cumulative stack size, 256 bytes smem
ptxas info    : Compile time = 10.249 ms
ptxas info    : Function properties for _Z6helperfi
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Compiling entry function 'plain' for 'sm_80'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 128+16 bytes smem, 388 bytes cmem[0], 8 bytes cmem[2]
"""


def test_resources_of_every_entry() -> None:
    assert parse_resources(LOG) == {
        "plain": Resources(registers=10, shared=128, constant=396),
        "rmsnorm_bf16": Resources(registers=34, stack=176, spill_stores=20, spill_loads=24, shared=256),
    }


def test_log_without_kernels() -> None:
    assert parse_resources("") == {}
    assert (
        parse_resources(
            "ptxas info : 0 bytes gmem\n    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        )
        == {}
    )


def test_spills_and_stack_are_one_phrase_per_kernel() -> None:
    assert describe_excess(parse_resources(LOG)) == ["rmsnorm_bf16: 24 bytes spilled, 176 bytes of stack"]


def test_warnings_remain() -> None:
    lines = other_lines(LOG)
    assert [line.partition(":")[0].strip() for line in lines] == ["norm.cu(3)", "ptxas info"]
    assert "C7510" in lines[1]

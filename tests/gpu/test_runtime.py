"""What every op owes the runtime: streams, graphs, threads, memory, torch's compiler."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sgl_kernel
import torch
from sgl_kernel import FusedSetKVBufferArg
from torch import Tensor

from ._compare import assert_close, assert_same_bits
from ._samples import OPS, SAMPLES, Sample
from ._tensors import DEVICE, randn

every_sample = pytest.mark.parametrize("name", SAMPLES)


def eager(name: str) -> list[Tensor]:
    """The results of a plain call, which the families' tests compare with float64."""
    sample = SAMPLES[name](DEVICE)
    sample.call()
    return sample.results()


def assert_results(sample: Sample, expected: list[Tensor], label: str) -> None:
    for result, reference in zip(sample.results(), expected, strict=True):
        assert_same_bits(result, reference, label)


@pytest.mark.parametrize("first", ["graph", "threads", "importing"])
def test_first_use_in_a_process(first: str) -> None:
    script = Path(__file__).with_name("_fresh_process.py")
    run = subprocess.run([sys.executable, str(script), first], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, f"{first}: exit code {run.returncode}\n{run.stdout}{run.stderr}"


@every_sample
def test_runs_on_the_current_stream_without_waiting(name: str) -> None:
    """Behind 20 ms of other work on a side stream: in order there, and back to the caller at once."""
    expected = eager(name)
    sample = SAMPLES[name](DEVICE)
    for tensor in sample.written:
        tensor.fill_(7)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(40_000_000)  # cycles
        sample.restore()
        sample.call()
        assert not side.record_event().query(), "the call waited for the device"
        results = sample.results()
    side.synchronize()
    for result, reference in zip(results, expected, strict=True):
        assert_same_bits(result, reference, name)


@every_sample
def test_graph_replay(name: str) -> None:
    expected = eager(name)
    sample = SAMPLES[name](DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample.call()
    for _ in range(3):
        sample.restore()
        graph.replay()
        assert_results(sample, expected, name)


def test_graph_of_several_streams() -> None:
    """Qwen3 norms its keys on a side stream inside the capture."""
    names = ("rmsnorm, heads", "rmsnorm", "silu_and_mul", "rope, neox")
    samples = {name: SAMPLES[name](DEVICE) for name in names}
    side = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            samples[names[0]].call()
            samples[names[1]].call()
        samples[names[2]].call()
        samples[names[3]].call()
        torch.cuda.current_stream().wait_stream(side)
    graph.replay()
    for name, sample in samples.items():
        assert_results(sample, eager(name), name)


@every_sample
def test_a_thread_that_never_used_cuda(name: str) -> None:
    """It has no current CUDA context, and torch sets none when it only passes tensors on."""
    expected = eager(name)
    sample = SAMPLES[name](DEVICE)
    torch.cuda.synchronize()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            sample.call()
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors, errors[0]
    torch.cuda.synchronize()
    assert_results(sample, expected, name)


@every_sample
def test_inference_mode(name: str) -> None:
    expected = eager(name)
    with torch.inference_mode():
        sample = SAMPLES[name](DEVICE)
        sample.call()
        assert_results(sample, expected, name)


def norm_chain(tokens: int, hidden: int) -> tuple[list[Tensor], Callable[[bool], None]]:
    """Four launches, each of which reads what the one before it wrote."""
    x, residual, y = (randn(tokens, hidden, dtype=torch.bfloat16) for _ in range(3))
    weight, other_weight = randn(hidden, dtype=torch.bfloat16), randn(hidden, dtype=torch.bfloat16)

    def step(enable_pdl: bool) -> None:
        sgl_kernel.fused_add_rmsnorm(x, residual, weight, enable_pdl=enable_pdl)
        sgl_kernel.gemma_fused_add_rmsnorm(x, residual, other_weight, enable_pdl=enable_pdl)
        sgl_kernel.rmsnorm(x, weight, out=y, enable_pdl=enable_pdl)
        sgl_kernel.gemma_rmsnorm(y, other_weight, out=x, enable_pdl=enable_pdl)

    return [x, residual, y], step


def layer_chain(tokens: int, hidden: int) -> tuple[list[Tensor], Callable[[bool], None]]:
    """A norm, the rotation and storing of its result, an activation back into the norm's input."""
    head = 128
    hidden = hidden // (4 * head) * 4 * head
    h = randn(tokens, hidden, dtype=torch.bfloat16)
    qkv = torch.zeros_like(h)
    query, key, value = qkv.split([hidden // 2, hidden // 4, hidden // 4], -1)
    caches = [torch.zeros(tokens, hidden // 4, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    weight = randn(hidden, dtype=torch.bfloat16)
    angles = torch.rand(64, head // 2, device=DEVICE) * 6.28
    cache = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.randint(64, (tokens,), device=DEVICE)
    fused = FusedSetKVBufferArg(value, *caches, None, None, torch.randperm(tokens, device=DEVICE))

    def step(enable_pdl: bool) -> None:
        sgl_kernel.rmsnorm(h, weight, out=qkv, enable_pdl=enable_pdl)
        sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
            positions, query, key, head, cache, True, fused, enable_pdl=enable_pdl
        )
        sgl_kernel.silu_and_mul(qkv, out=h[:, : hidden // 2])

    return [h, qkv, *caches], step


Chain = Callable[[int, int], tuple[list[Tensor], Callable[[bool], None]]]


def run_chain(chain: Chain, tokens: int, hidden: int, enable_pdl: bool, steps: int) -> list[Tensor]:
    torch.manual_seed(1)
    tensors, step = chain(tokens, hidden)
    for _ in range(steps):
        step(enable_pdl)
    return tensors


@pytest.mark.parametrize(("tokens", "hidden"), [(1, 5120), (3, 512), (64, 1024), (257, 8192), (2048, 512)])
@pytest.mark.parametrize("chain", [norm_chain, layer_chain])
def test_dependent_launches_see_their_predecessors(chain: Chain, tokens: int, hidden: int) -> None:
    """1000 rounds of launches that may start before the one they depend on ends, against ordinary ones."""
    ordinary = run_chain(chain, tokens, hidden, False, 1000)
    dependent = run_chain(chain, tokens, hidden, True, 1000)
    for result, expected in zip(dependent, ordinary, strict=True):
        assert_same_bits(result, expected, "with programmatic dependent launch")


@pytest.mark.parametrize("chain", [norm_chain, layer_chain])
def test_dependent_launches_in_a_graph(chain: Chain) -> None:
    ordinary = run_chain(chain, 64, 2048, False, 500)
    torch.manual_seed(1)
    tensors, step = chain(64, 2048)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(50):
            step(True)
    for _ in range(10):
        graph.replay()
    for result, expected in zip(tensors, ordinary, strict=True):
        assert_same_bits(result, expected, "with programmatic dependent launch, from a graph")


@every_sample
def test_the_same_bits_every_time(name: str) -> None:
    expected = eager(name)
    sample = SAMPLES[name](DEVICE)
    differs = torch.zeros((), dtype=torch.bool, device=DEVICE)
    for _ in range(100):
        sample.restore()
        sample.call()
        for result, reference in zip(sample.written, expected, strict=True):
            differs |= (result != reference).any()
    assert not differs


@every_sample
def test_cpu_and_cuda_agree(name: str) -> None:
    """Both compute in fp32 and round once; where terms cancel (rope, 1 + erf) an absolute error is left."""
    on_cpu = SAMPLES[name]("cpu")
    on_cpu.call()
    for result, reference in zip(eager(name), on_cpu.written, strict=True):
        slack = 1e-5
        if name.startswith("gptq_marlin_gemm"):
            # The CPU rounds weights times scales to the dtype, the GPU does so with many tokens only.
            slack = 0.5 * torch.finfo(result.dtype).eps * reference.abs().max().item()
        assert_close(result.cpu(), reference.double(), slack=slack, label=name)


def rejected_calls() -> list[Callable[[], object]]:
    """Calls that fail in the ops, each after it took hold of all its tensors."""
    ops = torch.ops.sgl_kernel
    arguments = {name: make(DEVICE) for name, (_, make) in OPS.items()}
    out, x, weight, *rest = arguments["rmsnorm"]
    fused_x, residual, fused_weight, *fused_rest = arguments["fused_add_rmsnorm"]
    activated, gates = arguments["silu_and_mul"]
    rope = arguments["rope, stored"]
    return [
        lambda: ops.rmsnorm(out, x, weight[:-1], *rest),
        lambda: ops.fused_add_rmsnorm(fused_x, residual[:-1], fused_weight, *fused_rest),
        lambda: ops.silu_and_mul(activated[..., :-1], gates),
        lambda: ops.apply_rope_pos_ids_cos_sin_cache(*rope[:5], rope[5][:-1], *rope[6:]),
        lambda: ops.apply_rope_pos_ids_cos_sin_cache(*rope[:-1], None),
    ]


def test_ten_thousand_calls_leave_nothing_behind() -> None:
    samples = [make(DEVICE) for make in SAMPLES.values()]
    bad_calls = rejected_calls()
    x, weight = randn(99, 4096, dtype=torch.bfloat16), randn(4096, dtype=torch.bfloat16)
    tensors = [
        x,
        weight,
        *(t for s in samples for t in (*s.args, *s.kwargs.values()) if isinstance(t, Tensor)),
    ]

    def a_round() -> None:
        for sample in samples:
            sample.call()
        sgl_kernel.rmsnorm(x, weight)
        sgl_kernel.silu_and_mul(x)
        for call in bad_calls:
            with pytest.raises(RuntimeError):
                call()

    def held() -> tuple[int, list[tuple[int, int]]]:
        """Bytes allocated, and the references to each tensor and to its storage."""
        gc.collect()
        torch.cuda.synchronize()
        counts = [(t._use_count(), torch._C._storage_Use_Count(t.untyped_storage()._cdata)) for t in tensors]
        return torch.cuda.memory_allocated(), counts

    a_round()
    before = held()
    for _ in range(10_000 // (len(samples) + 2 + len(bad_calls))):
        a_round()
    assert held() == before


# Warnings of torch's compiler about itself are not ours to fix.
not_our_warnings = pytest.mark.filterwarnings("ignore")


@not_our_warnings
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    """The schema tells the truth about what is written, the fake fits, and tracing keeps the results."""
    op, arguments = OPS[name]
    torch.library.opcheck(getattr(torch.ops.sgl_kernel, op).default, arguments(DEVICE))


@not_our_warnings
@every_sample
def test_compiles_to_one_graph(name: str) -> None:
    expected = eager(name)
    sample = SAMPLES[name](DEVICE)
    torch._dynamo.reset()
    torch.compile(sample.function, fullgraph=True, backend="aot_eager")(*sample.args, **sample.kwargs)
    assert_results(sample, expected, f"{name}, compiled")


@not_our_warnings
@pytest.mark.parametrize(
    "op", ["rmsnorm", "gemma_rmsnorm", "silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"]
)
def test_compiles_with_a_fresh_output(op: str) -> None:
    x = randn(5, 256, dtype=torch.bfloat16)
    others = (randn(256, dtype=torch.bfloat16),) if "norm" in op else ()
    function = getattr(sgl_kernel, op)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: function(*args) + 1, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x, *others), function(x, *others) + 1, f"{op}, compiled")


def decoder_layer(
    x: Tensor,
    residual: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    cache: Tensor,
) -> tuple[Tensor, Tensor]:
    """Norm, projection, head norms, rotation, activation, norm: a layer without its attention."""
    sgl_kernel.fused_add_rmsnorm(x, residual, weights["input"])
    qkv = x @ weights["qkv"]
    q, k, v = qkv.split([512, 128, 128], -1)
    q = sgl_kernel.rmsnorm(q.reshape(-1, 128), weights["head"]).view(-1, 512)
    k = sgl_kernel.rmsnorm(k.reshape(-1, 128), weights["head"]).view(-1, 128)
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 128, cache)
    h = (q * 0.5 + torch.cat((k, v, k, v), -1)) @ weights["up"]
    return sgl_kernel.gemma_rmsnorm(sgl_kernel.silu_and_mul(h), weights["output"]), residual


@not_our_warnings
def test_inductor_compiles_a_layer() -> None:
    shapes = {"input": (256,), "qkv": (256, 768), "head": (128,), "up": (512, 1024), "output": (512,)}
    weights = {name: randn(*shape, dtype=torch.bfloat16, scale=0.3) for name, shape in shapes.items()}
    x, residual = randn(7, 256, dtype=torch.bfloat16), randn(7, 256, dtype=torch.bfloat16)
    angles = torch.rand(32, 64, device=DEVICE) * 6.28
    cache = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.randint(32, (7,), device=DEVICE)
    expected = decoder_layer(x.clone(), residual.clone(), weights, positions, cache)
    torch._dynamo.reset()
    result = torch.compile(decoder_layer, fullgraph=True)(x, residual, weights, positions, cache)
    # Inductor may round a fused product or sum once where eager rounds twice; two GEMMs carry that on.
    torch.testing.assert_close(result, expected, rtol=5e-2, atol=5e-2)

"""The memory plan: does the model fit the GPU with these settings, and if not, which nearest ones do.

Pure functions over the model's ``config.json``, SGLang's options and the GPU's memory. All sizes in bytes.

SGLang (0.5.1) divides the memory that is free once the CUDA context stands as follows: the fraction
``--mem-fraction-static`` holds weights and KV cache, the cache taking whatever the weights leave of it
(or ``--max-total-tokens``); the rest must hold activations, logits, CUDA graphs and workspaces. Weights,
KV cache, activations and logits follow from shapes. Four figures are allowances, named as such in the
table: the CUDA context, workspaces, a CUDA graph per layer and captured batch size, torch.compile's buffers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgl_kernel_rebuild.errors import DeployError

__all__ = ["GIB", "MIB", "ModelShape", "Plan", "Settings", "make_plan", "parse_size"]

MIB = 1 << 20
GIB = 1 << 30

_CONTEXT = 512 * MIB
_GRAPH_PER_LAYER = 1 * MIB
_COMPILE = 256 * MIB
_WORKSPACE = 512 * MIB
_SMALLEST_FRACTION = 0.1
_FRACTION_STEP = 0.005
_UNIT = {"": 1, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}
_KV_BYTES = {"fp8_e5m2": 1, "fp8_e4m3": 1, "auto": 2, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelShape:
    """What of a ``config.json`` decides the memory.

    ``bits`` is the size of a quantized weight, 16 without quantization; ``group_size`` weights share a
    16-bit scale and a zero point of ``bits``.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int
    is_tied: bool = False
    bits: int = 16
    group_size: int = 128
    experts: int = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a decoder's ``config.json``.

        Raises:
            DeployError: a field is missing or is no positive integer, or the cache is of a kind that this
                plan does not know (multi-head latent attention).
        """
        if config.get("kv_lora_rank"):
            raise DeployError(
                "config.json: kv_lora_rank: expected none (a plan for latent attention is not implemented)\n"
                "Skip the plan with --no-plan."
            )

        def number(*names: str, default: int | None = None) -> int:
            for name in names:
                value = config.get(name)
                if value is not None:
                    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                        raise DeployError(f"config.json: {name}: expected a positive integer, got {value!r}")
                    return value
            if default is None:
                raise DeployError(f"config.json: {names[0]}: expected a positive integer, got nothing")
            return default

        heads = number("num_attention_heads")
        hidden = number("hidden_size")
        experts = number("num_experts", "num_local_experts", "n_routed_experts", default=1)
        dense = ("intermediate_size",)
        quantization = config.get("quantization_config") or {}
        if not isinstance(quantization, Mapping):
            raise DeployError(f"config.json: quantization_config: expected a table, got {quantization!r}")
        bits = quantization.get("bits", quantization.get("w_bit"))
        if bits is None:
            bits = 8 if quantization.get("quant_method") == "fp8" else 16
        group = quantization.get("group_size", quantization.get("q_group_size", 128))
        for name, value in (("bits", bits), ("group_size", group)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise DeployError(f"config.json: {name}: expected an integer, got {value!r}")
        return cls(
            layers=number("num_hidden_layers"),
            hidden=hidden,
            intermediate=number(*(("moe_intermediate_size", *dense) if experts > 1 else dense)),
            heads=heads,
            kv_heads=number("num_key_value_heads", default=heads),
            head_dim=number("head_dim", default=max(1, hidden // heads)),
            vocabulary=number("vocab_size"),
            max_positions=number("max_position_embeddings"),
            is_tied=bool(config.get("tie_word_embeddings", False)),
            bits=bits,
            group_size=group if group > 0 else 1 << 30,
            experts=experts,
        )

    @property
    def weight_bytes(self) -> int:
        """Size of the weights by their shapes; embeddings and norms stay at 16 bits."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden * self.intermediate * self.experts
        linear = self.layers * (attention + mlp)
        packed = linear * self.bits // 8
        if self.bits < 16:
            packed += math.ceil(linear / self.group_size * (2 + self.bits / 8))
        router = self.layers * self.hidden * self.experts * 2 if self.experts > 1 else 0
        embeddings = self.vocabulary * self.hidden * 2 * (1 if self.is_tied else 2)
        norms = (self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden) * 2
        return packed + router + embeddings + norms

    def kv_bytes_per_token(self, kv_dtype: str) -> int:
        """Size of one token's keys and values in all layers.

        Raises:
            DeployError: a dtype that is not SGLang's.
        """
        if kv_dtype not in _KV_BYTES:
            expected = ", ".join(sorted(_KV_BYTES))
            raise DeployError(f"plan: kv-cache-dtype: expected one of {expected}, got {kv_dtype}")
        return 2 * self.layers * self.kv_heads * self.head_dim * _KV_BYTES[kv_dtype]


@dataclass(frozen=True)
class Settings:
    """The options of SGLang that decide the memory; ``max_total_tokens`` None lets it take what is left."""

    mem_fraction_static: float = 0.88
    context_length: int = 32768
    max_total_tokens: int | None = None
    kv_dtype: str = "auto"
    chunked_prefill_size: int = 2048
    graph_batch_sizes: int = 4
    max_batch: int = 8
    has_graphs: bool = True
    has_compile: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any], shape: ModelShape) -> Settings:
        """Read SGLang's options by their long names.

        Raises:
            DeployError: a value out of range, or of another type.
        """

        def number(name: str, default: float, kind: type = int) -> Any:
            value = options.get(name, default)
            expected = (int, float) if kind is float else (int,)
            if isinstance(value, bool) or not isinstance(value, expected) or value <= 0:
                raise DeployError(f"plan: {name}: expected a positive {kind.__name__}, got {value!r}")
            return value

        fraction = float(number("mem-fraction-static", cls.mem_fraction_static, float))
        if fraction >= 1:
            raise DeployError(f"plan: mem-fraction-static: expected less than 1, got {fraction}")
        max_batch = number("cuda-graph-max-bs", cls.max_batch)
        total = options.get("max-total-tokens")
        return cls(
            mem_fraction_static=fraction,
            context_length=number("context-length", shape.max_positions),
            max_total_tokens=None if total is None else number("max-total-tokens", 1),
            kv_dtype=str(options.get("kv-cache-dtype", "auto")),
            chunked_prefill_size=number("chunked-prefill-size", cls.chunked_prefill_size),
            # SGLang captures 1, 2, 4 and every multiple of 8.
            graph_batch_sizes=min(3, max_batch.bit_length()) + max_batch // 8,
            max_batch=max_batch,
            has_graphs=not options.get("disable-cuda-graph", False),
            has_compile=bool(options.get("enable-torch-compile", False)),
        )

    @property
    def needed_tokens(self) -> int:
        """Tokens that the cache must hold: those asked for, or one request of full length."""
        return self.context_length if self.max_total_tokens is None else self.max_total_tokens


@dataclass(frozen=True)
class Plan:
    """What goes where; ``nearest`` is None where the settings fit, or where none would.

    ``rows`` are (what, bytes, how it was found).
    """

    settings: Settings
    memory: int
    weights: int
    kv_per_token: int
    tokens: int
    dynamic: int
    rows: Sequence[tuple[str, int, str]]
    problem: str | None = None
    nearest: Settings | None = None

    @property
    def fits(self) -> bool:
        return self.problem is None

    @property
    def advice(self) -> str:
        """The options to give so that it fits, or what hardware it takes; empty where it fits."""
        if self.fits:
            return ""
        if self.nearest is None:
            least = self.weights + self.dynamic + _CONTEXT + self.kv_per_token
            return (
                f"No setting fits: weights and workspace alone take {least / GIB:.1f} GiB. "
                "Take a GPU with more memory, or a smaller or more strongly quantized model."
            )
        flags = []
        if self.nearest.mem_fraction_static != self.settings.mem_fraction_static:
            flags.append(f"--mem-fraction-static {self.nearest.mem_fraction_static:g}")
        if self.nearest.context_length != self.settings.context_length:
            flags.append(f"--context-length {self.nearest.context_length}")
        if self.nearest.max_total_tokens != self.settings.max_total_tokens:
            flags.append(f"--max-total-tokens {self.nearest.max_total_tokens}")
        return f"The nearest setting that fits: {' '.join(flags)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "problem": self.problem,
            "advice": self.advice or None,
            "memory_bytes": self.memory,
            "tokens": self.tokens,
            "kv_bytes_per_token": self.kv_per_token,
            "mem_fraction_static": self.settings.mem_fraction_static,
            "rows": [{"what": what, "bytes": size, "how": how} for what, size, how in self.rows],
        }


def make_plan(shape: ModelShape, settings: Settings, memory: int, *, weights: int | None = None) -> Plan:
    """Return where ``memory`` (bytes free on the GPU) goes.

    ``weights`` are the bytes of the weight files where those are at hand; else the shapes decide.
    """
    plan = _lay_out(shape, settings, memory, weights)
    return plan if plan.fits else replace(plan, nearest=_find_nearest(shape, settings, memory, weights))


def parse_size(text: str) -> int:
    """Return the bytes of ``32GiB``, ``32G`` or ``32607MiB``; units are powers of 1024.

    Raises:
        DeployError: no number with a unit.
    """
    number = text.strip().rstrip("iBb").rstrip("i")
    unit = number[-1:].upper() if not number[-1:].isdigit() else ""
    try:
        size = float(number[: len(number) - len(unit)]) * _UNIT[unit]
        if not 0 < size < 1 << 60:
            raise ValueError(text)
    except (ValueError, KeyError) as err:
        raise DeployError(f"size: expected a number with MiB or GiB, got {text!r}") from err
    return int(size)


def _lay_out(shape: ModelShape, settings: Settings, memory: int, weights: int | None) -> Plan:
    size = shape.weight_bytes if weights is None else weights
    per_token = shape.kv_bytes_per_token(settings.kv_dtype)
    available = max(0, memory - _CONTEXT)
    static = int(available * settings.mem_fraction_static)
    room = max(0, (static - size) // per_token)
    tokens = room if settings.max_total_tokens is None else min(room, settings.max_total_tokens)
    dynamic_rows = _dynamic_rows(shape, settings)
    dynamic = sum(size for _, size, _ in dynamic_rows)
    rows: list[tuple[str, int, str]] = [
        ("CUDA context", min(_CONTEXT, memory), "allowance"),
        ("weights", size, "by shape" if weights is None else "size of the files"),
        ("KV cache", tokens * per_token, f"{tokens} tokens of {per_token} bytes, {settings.kv_dtype}"),
        *dynamic_rows,
    ]
    rows.append(("left free", memory - sum(size for _, size, _ in rows), ""))
    problem = None
    if room < settings.needed_tokens:
        problem = (
            f"the KV cache has room for {room} tokens, needed are {settings.needed_tokens}"
            if size < static
            else f"the weights take {size / GIB:.1f} GiB, the static part is {static / GIB:.1f} GiB"
        )
    elif available - static < dynamic:
        problem = (
            f"outside the static part {dynamic / GIB:.2f} GiB are needed,"
            f" {(available - static) / GIB:.2f} GiB are left"
        )
    return Plan(settings, memory, size, per_token, tokens, dynamic, tuple(rows), problem)


def _dynamic_rows(shape: ModelShape, settings: Settings) -> list[tuple[str, int, str]]:
    # The widest moment of a layer: gate and up with their product, the residual stream twice, q, k, v.
    width = 3 * shape.intermediate + 4 * shape.hidden + (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    tokens = settings.chunked_prefill_size
    rows = [
        ("activations", tokens * width * 2, f"prefill of {tokens} tokens"),
        # Logits in fp32, their probabilities, and the sorted or masked copy that sampling makes.
        ("logits", 3 * 4 * shape.vocabulary * settings.max_batch, f"batch of {settings.max_batch}"),
    ]
    rows.append(("workspaces", _WORKSPACE, "allowance: cuBLAS, attention, fragments"))
    if settings.has_graphs:
        size = settings.graph_batch_sizes * shape.layers * _GRAPH_PER_LAYER
        rows.append(("CUDA graphs", size, f"allowance, {settings.graph_batch_sizes} batch sizes"))
    if settings.has_compile:
        rows.append(("torch.compile", _COMPILE, "allowance"))
    return rows


def _find_nearest(shape: ModelShape, settings: Settings, memory: int, weights: int | None) -> Settings | None:
    """Return settings that fit: another fraction if that is enough, else also fewer tokens."""
    available = max(1, memory - _CONTEXT)
    dynamic = sum(size for _, size, _ in _dynamic_rows(shape, settings))
    largest = math.floor((available - dynamic) / available / _FRACTION_STEP) * _FRACTION_STEP
    # The cut to three digits is what the user types.
    largest = round(min(largest, 0.99), 3)
    if largest < _SMALLEST_FRACTION:
        return None
    size = shape.weight_bytes if weights is None else weights
    per_token = shape.kv_bytes_per_token(settings.kv_dtype)
    wanted = size + settings.needed_tokens * per_token
    smallest = round(math.ceil(wanted / available / _FRACTION_STEP) * _FRACTION_STEP, 3)
    for fraction in (smallest, largest):
        fraction = min(max(fraction, _SMALLEST_FRACTION), largest)
        chosen = replace(settings, mem_fraction_static=fraction)
        if _lay_out(shape, chosen, memory, weights).fits:
            # The least change: keep the fraction asked for where it is between the two.
            if smallest <= settings.mem_fraction_static <= largest:
                chosen = replace(chosen, mem_fraction_static=settings.mem_fraction_static)
            return chosen
    fewer = (int(available * largest) - size) // per_token // 256 * 256
    if fewer <= 0:
        return None
    context = min(fewer, settings.context_length)
    chosen = replace(settings, mem_fraction_static=largest, context_length=context)
    if settings.max_total_tokens is not None:
        chosen = replace(chosen, max_total_tokens=fewer)
    return chosen if _lay_out(shape, chosen, memory, weights).fits else None

"""Qwen3 with AWQ weights in plain torch, float32 throughout: what SGLang's answers are compared with.

It shares no code with the package under test and none with the maker of the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

__all__ = ["Answer", "Qwen3", "dequantize"]

# Column 8w + c of an AWQ matrix lies in word w, at the nibble NIBBLE[c] (AutoAWQ's "gemm" packing).
NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Answer:
    """Greedy decoding of one prompt.

    ``logprobs`` are those of ``tokens``; ``prompt_logprobs`` those of the prompt's tokens from the second on.
    ``margin`` is the smallest distance, over the steps, of the best logit to the second best.
    """

    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    margin: float


@dataclass
class Cache:
    """Keys and values so far, as they are stored: per layer ``[tokens, kv_heads, head_dim]``."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None  # what they are rounded to; None: not at all

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new tokens; returns what they attend to.

        As in SGLang's Triton kernels, several new tokens see one another before the rounding, and what was
        stored before after it; a single one, a decoding step, reads all from the cache.
        """
        stored = self._rounded(key), self._rounded(value)
        seen = stored if len(key) == 1 else (key, value)
        old = (self.keys.get(layer, key[:0]), self.values.get(layer, value[:0]))
        self.keys[layer] = torch.cat((old[0], stored[0]))
        self.values[layer] = torch.cat((old[1], stored[1]))
        return torch.cat((old[0], seen[0])), torch.cat((old[1], seen[1]))

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor if self.dtype is None else tensor.to(self.dtype).to(tensor.dtype)


class Qwen3:
    """The model of a folder (``config.json``, ``model.safetensors``), one sequence at a time."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        config = json.loads((folder / "config.json").read_text())
        self.layers = config["num_hidden_layers"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = config["head_dim"]
        self.eps = config["rms_norm_eps"]
        self.eos = config["eos_token_id"]
        packed = load_file(folder / "model.safetensors")
        self.weights = {}
        for name, tensor in packed.items():
            if name.endswith(".qweight"):
                stem = name.removesuffix("qweight")
                weight = dequantize(tensor, packed[stem + "qzeros"], packed[stem + "scales"])
                self.weights[stem + "weight"] = weight.T.contiguous().to(device)
            elif not name.endswith((".qzeros", ".scales")):
                self.weights[name] = tensor.float().to(device)
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device) / self.head_dim
        self.frequencies = config["rope_theta"] ** -half

    @torch.inference_mode()
    def hidden(self, tokens: list[int], cache: Cache | None = None) -> Tensor:
        """What the head reads: ``[tokens, hidden]``; ``cache`` holds what went before."""
        cache = cache if cache is not None else Cache()
        past = len(cache.keys[0]) if cache.keys else 0
        device = self.frequencies.device
        x = self.weights["model.embed_tokens.weight"][torch.tensor(tokens, device=device)]
        positions = torch.arange(past, past + len(tokens), device=device)
        angles = positions[:, None].double() * self.frequencies
        rotation = angles.cos().float()[:, None], angles.sin().float()[:, None]
        for layer in range(self.layers):
            stem = f"model.layers.{layer}."
            normed = self._norm(x, stem + "input_layernorm")
            x = x + self._attention(normed, stem + "self_attn.", layer, rotation, cache)
            normed = self._norm(x, stem + "post_attention_layernorm")
            gate = self._linear(normed, stem + "mlp.gate_proj")
            up = self._linear(normed, stem + "mlp.up_proj")
            x = x + self._linear(functional.silu(gate) * up, stem + "mlp.down_proj")
        return self._norm(x, "model.norm")

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """``[tokens, vocab]``"""
        return self._linear(hidden, "lm_head")

    @torch.inference_mode()
    def greedy(
        self, prompt: list[int], steps: int, kv_dtype: torch.dtype | None = None, chunk: int = 2048
    ) -> Answer:
        """Decode until the end-of-sequence token, which belongs to the answer, or for ``steps`` tokens.

        ``chunk`` tokens of the prompt are processed at a time, which changes the result only where
        ``kv_dtype`` rounds the cache.
        """
        cache = Cache(dtype=kv_dtype)
        rows = []
        for begin in range(0, len(prompt), chunk):
            rows.append(self.logits(self.hidden(prompt[begin : begin + chunk], cache)))
        logits = torch.cat(rows)
        following = torch.tensor(prompt[1:], dtype=torch.int64, device=logits.device)
        prompt_logprobs = logits[:-1].log_softmax(-1).gather(1, following[:, None])[:, 0].tolist()
        tokens: list[int] = []
        logprobs, margins = [], []
        while True:
            best = logits[-1].topk(2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            logprobs.append(float(logits[-1].log_softmax(-1)[tokens[-1]]))
            if tokens[-1] == self.eos or len(tokens) == steps:
                return Answer(tokens, logprobs, prompt_logprobs, min(margins))
            logits = self.logits(self.hidden(tokens[-1:], cache))

    def _attention(
        self, x: Tensor, stem: str, layer: int, rotation: tuple[Tensor, Tensor], cache: Cache
    ) -> Tensor:
        shape = (len(x), -1, self.head_dim)
        query = self._norm(self._linear(x, stem + "q_proj").view(shape), stem + "q_norm")
        key = self._norm(self._linear(x, stem + "k_proj").view(shape), stem + "k_norm")
        value = self._linear(x, stem + "v_proj").view(shape)
        keys, values = cache.extend(layer, rotate(key, rotation), value)
        query = rotate(query, rotation)
        groups = self.heads // self.kv_heads
        keys, values = (t.repeat_interleave(groups, dim=1).transpose(0, 1) for t in (keys, values))
        scores = query.transpose(0, 1) @ keys.transpose(1, 2) / self.head_dim**0.5  # [heads, new, all]
        past = keys.size(1) - len(x)
        hidden_from = torch.ones(len(x), keys.size(1), dtype=torch.bool, device=x.device).triu(past + 1)
        weights = scores.masked_fill_(hidden_from, float("-inf")).softmax(-1)
        return self._linear((weights @ values).transpose(0, 1).flatten(1), stem + "o_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.weights[name + ".weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm over the last dimension."""
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weights[name + ".weight"]


def dequantize(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """An AWQ matrix as float32 ``[k, n]``: (q - zero) * scale.

    qweight int32 ``[k, n / 8]``, qzeros int32 ``[k / group, n / 8]``, scales ``[k / group, n]``.
    """
    group = len(qweight) // len(scales)
    zeros = unpack(qzeros).repeat_interleave(group, 0)
    return (unpack(qweight) - zeros).float() * scales.float().repeat_interleave(group, 0)


def unpack(words: Tensor) -> Tensor:
    """int32 ``[rows, n / 8]`` to int32 ``[rows, n]`` of 0 to 15."""
    shifts = 4 * torch.tensor(NIBBLE, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 15).flatten(1)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE with the halves of a head as pairs (NeoX): x ``[tokens, heads, head_dim]``."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

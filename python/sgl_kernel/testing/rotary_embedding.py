"""Rotary embedding in plain torch and through the kernel, with inputs and a cache to compare the two on."""

# mypy: disallow-subclassing-any=False

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel.rope import FusedSetKVBufferArg, apply_rope_with_cos_sin_cache_inplace

__all__ = ["FlashInferRotaryEmbedding", "MHATokenToKVPool", "RotaryEmbedding", "create_inputs"]


class RotaryEmbedding(torch.nn.Module):
    """The reference: float32 arithmetic of plain torch operations, rounded to the dtype of its inputs."""

    cos_sin_cache: Tensor

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: int,
        is_neox_style: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.head_size = head_size
        self.rotary_dim = rotary_dim
        self.max_position_embeddings = max_position_embeddings
        self.base = base
        self.is_neox_style = is_neox_style
        self.dtype = dtype
        self.register_buffer("cos_sin_cache", self._compute_cos_sin_cache(), persistent=False)

    def _compute_inv_freq(self, base: int | float) -> Tensor:
        """[rotary_dim / 2]: ``base ** (-2 * i / rotary_dim)``."""
        exponent = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32) / self.rotary_dim
        return torch.pow(base, -exponent)

    def _compute_cos_sin_cache(self) -> Tensor:
        """float32 [max_position_embeddings, rotary_dim]: cosines, then sines."""
        positions = torch.arange(self.max_position_embeddings, dtype=torch.float32)
        angles = torch.outer(positions, self._compute_inv_freq(self.base))
        return torch.cat((angles.cos(), angles.sin()), -1)

    def forward_native(
        self, positions: Tensor, query: Tensor, key: Tensor, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rotated ``query`` and ``key`` [tokens, heads * head_size], as new tensors."""
        if offsets is not None:
            positions = positions + offsets
        cos, sin = self.cos_sin_cache[positions.flatten()].unsqueeze(1).chunk(2, -1)
        return self._rotate(query, cos, sin), self._rotate(key, cos, sin)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        result = x.reshape(x.size(0), -1, self.head_size).clone()
        head = result[..., : self.rotary_dim]
        # Complex multiplication, on purpose not the formula of the kernel's CPU path.
        if self.is_neox_style:
            real, imaginary = head.chunk(2, -1)
        else:
            real, imaginary = head[..., 0::2], head[..., 1::2]
        turned = torch.complex(real.float(), imaginary.float()) * torch.complex(cos, sin)
        real.copy_(turned.real)
        imaginary.copy_(turned.imag)
        return result.view(x.shape)


class FlashInferRotaryEmbedding(RotaryEmbedding):
    """The kernel under test."""

    def forward_cuda(
        self,
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        fused_set_kv_buffer_arg: FusedSetKVBufferArg | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rotates ``query`` and ``key`` in place and returns them."""
        if offsets is not None:
            positions = positions + offsets
        apply_rope_with_cos_sin_cache_inplace(
            positions=positions,
            query=query,
            key=key,
            head_size=self.head_size,
            cos_sin_cache=self.cos_sin_cache,
            is_neox=self.is_neox_style,
            fused_set_kv_buffer_arg=fused_set_kv_buffer_arg,
        )
        return query, key


class MHATokenToKVPool:
    """A bfloat16 cache of one layer: ``k_buffer[0]`` and ``v_buffer[0]`` are [slots, head_num, head_dim]."""

    KV_POOL_SIZE = 16384

    def __init__(self, head_num: int, head_dim: int) -> None:
        self.head_num = head_num
        self.head_dim = head_dim
        self.size = self.KV_POOL_SIZE
        self.dtype = torch.bfloat16
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._create_buffers()

    def _create_buffers(self) -> None:
        shape = (self.size, self.head_num, self.head_dim)
        self.k_buffer = [torch.zeros(shape, dtype=self.dtype, device=self.device)]
        self.v_buffer = [torch.zeros(shape, dtype=self.dtype, device=self.device)]

    def set_kv_buffer(self, loc: Tensor, cache_k: Tensor, cache_v: Tensor) -> None:
        """Stores keys and values [tokens, head_num, head_dim] at the slots ``loc``."""
        self.k_buffer[0][loc] = cache_k
        self.v_buffer[0][loc] = cache_v


def create_inputs(
    head_size: int,
    batch_size: int,
    seq_len: int,
    device: torch.device | str,
    dtype: torch.dtype,
    num_q_heads: int,
    num_kv_heads: int,
) -> dict[str, Tensor]:
    """``pos_ids``, ``query``, ``key``, ``value`` and ``out_cache_loc`` for batch_size * seq_len tokens."""
    tokens = batch_size * seq_len
    slots = torch.randperm(MHATokenToKVPool.KV_POOL_SIZE, device=device)

    def heads(count: int) -> Tensor:
        return torch.randn(tokens, count * head_size, dtype=dtype, device=device)

    return {
        "pos_ids": torch.arange(seq_len, device=device).repeat(batch_size),
        "query": heads(num_q_heads),
        "key": heads(num_kv_heads),
        "value": heads(num_kv_heads),
        "out_cache_loc": slots[:tokens].clone(),
    }

"""Sharing the multiprocessors of a GPU between streams. The streams are not provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import torch

from sgl_kernel._missing import not_provided

__all__ = ["create_greenctx_stream_by_value", "get_sm_available"]


@not_provided
def create_greenctx_stream_by_value(
    SM_a: int, SM_b: int, device_id: int | None = None
) -> tuple[torch.cuda.ExternalStream, torch.cuda.ExternalStream]:
    """Two streams that own about ``SM_a`` and ``SM_b`` multiprocessors."""


def get_sm_available(device_id: int | None = None) -> int:
    """The number of multiprocessors of a device, by default the current one."""
    return int(torch.cuda.get_device_properties(device_id).multi_processor_count)

"""Attention with INT8 Q·Kᵀ and 8- or 16-bit P·V, and its bf16 twin."""

from pallas_kernels.attention_int8.api import attention_bf16, attention_int8
from pallas_kernels.attention_int8.config import AttentionConfig

__all__ = ["AttentionConfig", "attention_bf16", "attention_int8"]

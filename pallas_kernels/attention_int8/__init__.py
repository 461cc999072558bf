"""Attention with INT8 Q·Kᵀ and 8- or 16-bit P·V, and its bf16 twin."""

from pallas_kernels.attention_int8.api import attention_bf16, attention_int8
from pallas_kernels.attention_int8.config import AttentionConfig
from pallas_kernels.attention_int8.operands import Before

__all__ = ["AttentionConfig", "Before", "attention_bf16", "attention_int8"]

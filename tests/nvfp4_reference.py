"""NVFP4 in plain numpy, value by value, without any of the package's code."""

import ml_dtypes
import numpy as np

# OCP Microscaling Formats (MX) v1.0, table 5: the values of FP4 E2M1, by code.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def numpy_nvfp4(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Packed codes, block scales and tensor scale, block by block in f32."""
    tensor_scale = np.float32(np.abs(x).max()) / np.float32(448 * 6)
    scales, codes = [], []
    for block in x.reshape(-1, 16):
        exact = np.abs(block).max() / np.float32(6) / tensor_scale
        scale = np.clip(exact, np.float32(2**-6), np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
        inverse = np.float32(1) / tensor_scale / scale.astype(np.float32)
        scales.append(scale)
        codes += [nearest_code(value * inverse) for value in block]
    pairs = np.array(codes, np.uint8).reshape(-1, 2)
    packed = (pairs[:, 0] + 16 * pairs[:, 1]).reshape(*x.shape[:-1], -1)
    return packed, np.array(scales).reshape(*x.shape[:-1], -1), tensor_scale


def nearest_code(value: np.float32) -> int:
    """The code whose value is nearest; of two equally near the even one."""
    distance = np.abs(E2M1[:8] - np.abs(value))
    near = np.flatnonzero(distance == distance.min())
    return int(near[near % 2 == 0][0] if len(near) > 1 else near[0]) + 8 * bool(np.signbit(value))

"""What rounding to codes should cost attention, to first order and as a root mean square.

Every rounding moves a number by up to half a step, any amount as likely as any other: a variance of step² / 12. A step
of INT8 is one of its token's scale (a block's, for keys), a step of a float 2^-mantissa of its value or less. Scores
move by what queries and keys move, the result by what scores, weights and values move.
"""

import numpy as np

MANTISSA = {"bf16": 8, "f16": 8, "e4m3": 4}  # bits, the hidden one included; the result and the inputs are bf16


def predicted_errors(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, float]:
    """Relative, of attention of one video's queries to its keys, each (1, tokens, heads, channels), by kind of V."""
    q, k, v = (np.moveaxis(np.asarray(x, np.float64)[0], 1, 0) for x in (q, k, v))
    scores_of, counts = _distinct(k)
    centred = (k - k.mean(1, keepdims=True))[:, scores_of]
    v_mean = v.mean(1, keepdims=True)
    v = v[:, scores_of]
    width = q.shape[-1]
    scores = np.einsum("aqc,akc->aqk", q, centred) * width**-0.5
    p = counts * np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("aqk,akc->aqc", p, v)
    apart = _squares(out)[:, :, None] - 2 * np.einsum("aqc,akc->aqk", out, v) + _squares(v)[:, None]

    # A query's rounding moves all its scores together: by how keys and values vary with each other under its weights.
    moments = np.einsum("aqk,akc,ake->aqce", p, centred, v, optimize=True)
    moments -= np.einsum("aqk,akc->aqc", p, centred)[..., None] * out[:, :, None]
    of_queries = (_variance(q, (-1,)) * _squares(moments)).sum() / width
    # A key's moves one score of every query.
    of_keys = np.einsum("aqc,akc->aqk", q**2, np.broadcast_to(_variance(centred, (1, 2)), centred.shape)) / width
    of_result = 2.0 ** (-2 * MANTISSA["bf16"]) / 3

    def error(pv: str) -> float:
        of_floats = 2.0 ** (-2 * MANTISSA[pv]) / 3
        kept = v - v_mean if pv == "e4m3" else v
        of_rest = (p**2 * ((of_keys + of_floats) * apart + of_floats * _squares(kept)[:, None])).sum()
        return float(np.sqrt((of_queries + of_rest) / (out**2).sum() + of_result))

    return {pv: error(pv) for pv in MANTISSA}


def _variance(x: np.ndarray, shared: tuple[int, ...]) -> np.ndarray:
    """Of the rounding of `x` to bf16, and then to INT8 with a scale for the `shared` axes."""
    step = np.abs(x).max(shared, keepdims=True) / 127
    return step**2 / 12 + (2.0**-8 * x) ** 2 / 12


def _squares(x: np.ndarray) -> np.ndarray:
    return (x**2).sum(-1)


def _distinct(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which keys differ, and how often each is there: equal keys are rounded alike, so their errors add up."""
    rows = np.moveaxis(k, 1, 0).reshape(k.shape[1], -1)
    _, first, counts = np.unique(rows.round(6), axis=0, return_index=True, return_counts=True)
    return first, counts

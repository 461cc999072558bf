"""One DiT forward at a real size, next to diffusers in the same process: error to f32, and time.

    python benchmarks/forward.py --size 1.3B --output benchmarks/forward.jsonl

Random weights are made by diffusers on the GPU and converted here. The yardstick of the error is diffusers in f32 (tf32
off) with the same bf16 weights. Times are medians of interleaved rounds, because a shared machine drifts. Needs a CUDA
GPU, torch and diffusers; COMMIT names the commit where git is absent.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import diffusers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks.provenance import provenance  # noqa: E402
from converters import wan_dit  # noqa: E402
from converters.read import Reader, Tensor  # noqa: E402
from converters.rules import convert  # noqa: E402
from sixbit_jax.models import wan  # noqa: E402
from sixbit_jax.models.wan_config import WAN_1_3B, WAN_14B, WanConfig  # noqa: E402
from sixbit_jax.models.wan_modules import abstract_params  # noqa: E402

SIZES = {"1.3B": WAN_1_3B, "14B": WAN_14B}
KEPT_F32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")  # as diffusers loads a bf16 checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-error", action="store_true", help="time only (14B in f32 needs 57 GB)")
    parser.add_argument("--output", type=Path, help="append one JSON line")
    args = parser.parse_args()

    config = SIZES[args.size]
    model = random_model(config)
    inputs = random_inputs(config, args)
    ours = build_ours(config, state_of(model))
    result = {"what": "forward", "size": args.size, "height": args.height, "width": args.width, "frames": args.frames}
    if not args.skip_error:
        result |= errors(model, ours, inputs)
    result |= times(model, ours, inputs, args.rounds)
    result |= provenance("benchmarks/forward.py")
    result |= {"torch": torch.__version__, "diffusers": diffusers.__version__}
    print(json.dumps(result, indent=1))
    if args.output:
        with args.output.open("a") as file:
            file.write(json.dumps(result) + "\n")


def random_model(config: WanConfig) -> torch.nn.Module:
    """diffusers' model in bf16 on the GPU, with biases and modulation large enough to matter."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    values = config.to_dict()
    with torch.device("cuda"):
        model = diffusers.WanTransformer3DModel(**values).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        dtype = torch.float32 if any(part in name for part in KEPT_F32) else torch.bfloat16
        parameter.data = parameter.data.to(dtype)
    return model


def random_inputs(config: WanConfig, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    shape = (1, config.in_channels, (args.frames - 1) // 4 + 1, args.height // 8, args.width // 8)
    latents = torch.randn(shape, device="cuda").bfloat16().float()
    text = torch.randn(1, 512, config.text_dim, device="cuda").bfloat16().float()
    return {"latents": latents, "text": text, "timestep": torch.tensor([500.0], device="cuda")}


def state_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The parameters as numpy arrays on the host; numpy has no bf16 of its own, so its bits travel as int16."""
    state = {}
    for key, value in model.state_dict().items():
        value = value.cpu()
        if value.dtype == torch.bfloat16:
            state[key] = value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            state[key] = value.numpy()
    return state


def build_ours(config: WanConfig, state: dict[str, np.ndarray]):
    """Inputs -> a forward with the converted weights. The prompt is embedded once, as in sampling."""
    source = Reader((), {key: Tensor(x.shape, x.dtype, functools.partial(np.asarray, x)) for key, x in state.items()})
    params = jax.device_put(convert(source, wan_dit.rules(config, "diffusers"), abstract_params(config, jnp.bfloat16)))
    embed = jax.jit(lambda params, text: wan.embed_context(params, config, text))
    forward = jax.jit(
        lambda params, latents, timestep, context: wan.forward(
            params, config, latents, timestep, context, token_multiple=256
        )[0]
    )

    def prepare(inputs: dict[str, torch.Tensor]):
        latents = jnp.asarray(inputs["latents"].permute(0, 2, 3, 4, 1).cpu().numpy())
        timestep = jnp.asarray(inputs["timestep"].cpu().numpy())
        context = embed(params, jnp.asarray(inputs["text"].cpu().numpy()))
        return lambda: forward(params, latents, timestep, context)

    return prepare


def errors(model: torch.nn.Module, ours, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative L2 and maximum error to f32, ours and diffusers' own."""
    theirs = run_torch(model, inputs, torch.bfloat16).float()
    mine = torch.from_numpy(np.moveaxis(np.array(ours(inputs)()), -1, 1)).cuda()
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    yardstick = run_torch(model.float(), inputs, torch.float32)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    relative = lambda x: float((x - yardstick).norm() / yardstick.norm())
    largest = lambda x: float((x - yardstick).abs().max() / yardstick.abs().max())
    return {
        "relative_error": relative(mine),
        "diffusers_relative_error": relative(theirs),
        "max_error": largest(mine),
        "diffusers_max_error": largest(theirs),
    }


def run_torch(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    with torch.no_grad():
        return model(inputs["latents"].to(dtype), inputs["timestep"], inputs["text"].to(dtype), return_dict=False)[0]


def times(model: torch.nn.Module, ours, inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, float]:
    forward = ours(inputs)
    ours_first = clock(lambda: jax.block_until_ready(forward()))
    compiled = torch.compile(model)
    theirs = lambda: run_torch(compiled, inputs, torch.bfloat16)
    mine, diffusers_ms = [], []
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        theirs_first = clock(theirs, torch.cuda.synchronize)
        for _ in range(rounds + 1):
            mine.append(clock(lambda: jax.block_until_ready(forward())))
            diffusers_ms.append(clock(theirs, torch.cuda.synchronize))
    # The first round of each still warms up.
    median, diffusers_median = statistics.median(mine[1:]), statistics.median(diffusers_ms[1:])
    return {
        "ms": round(median, 2),
        "diffusers_compiled_cudnn_ms": round(diffusers_median, 2),
        "ratio": round(diffusers_median / median, 4),
        "first_call_s": round(ours_first / 1e3, 1),
        "diffusers_first_call_s": round(theirs_first / 1e3, 1),
    }


def clock(run, wait=lambda: None) -> float:
    start = time.perf_counter()
    run()
    wait()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()

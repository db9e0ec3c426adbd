"""The flags of XLA's compilers that flaxlm sets, in one place and each with its reason.

libtpu reads LIBTPU_INIT_ARGS and the compilers inside jaxlib read XLA_FLAGS, both once, when the
first device is asked for: `use()` is called before jax is imported. What the user has set in these
variables stays as it is and wins, flag by flag; FLAXLM_FLAGS=none adds nothing.

A flag that a compiler does not know, or a value that it does not take, ends the process. All of
these were accepted by libtpu 0.0.42, 0.0.50 and 0.0.51 and by jaxlib 0.10.2 and 0.12.0, the ends of
the range that pyproject.toml allows; tests/test_flags.py asks the ones that are installed.

Left at their defaults, and why:

* TPU, latency-hiding scheduler, asynchronous all-gathers and all-reduces and their fusion with
  products: what a chip has of it is on by default. On v5e setting them left a compiled decoder as
  it was, and on v5p the compiler refuses them.
* TPU, pipelined all-gathers of a scanned stack (xla_tpu_enable_ici_ag_pipelining): asynchronous
  fusions of that decoder rose from 5 to 22 on 8 chips of v5e, but it gathered 2.3 times the bytes
  and its temporaries grew by 37 %; on v5p by 16 %, and nothing became asynchronous.
* TPU, asynchronous all-to-alls (xla_tpu_enable_async_all_to_all): with sequence parallelism on v5e
  libtpu 0.0.50 ends the process while it compiles gpt3_125m (HloInstruction 'all-to-all-start').
* TPU, room of a fusion in vector memory (xla_tpu_scoped_vmem_limit_kib): best values differ by chip
  and model; set it yourself in LIBTPU_INIT_ARGS.
* GPU, xla_gpu_enable_triton_gemm, xla_gpu_triton_gemm_any: the autotuner times Triton's products
  against cuBLAS's and takes the faster; the public advice goes both ways.
* GPU, xla_gpu_enable_command_buffer: fusions and products are in command buffers by default.
"""

import importlib.util
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from flaxlm.errors import ConfigError


@dataclass(frozen=True)
class Flag:
    name: str
    value: str
    why: str

    def __str__(self):
        return f"--{self.name}={self.value}"


# Sources: openxla.org/xla/flags_guidance, github.com/AI-Hypercomputer/maxtext. The first two change
# nothing in a decoder that libtpu 0.0.50 compiles for 2 slices of 4 chips of v5e: they are for
# networks and shapes beyond those.
TPU = (
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt", "true",
        "gradients are summed between slices, over the data-center network, while others are made",
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops", "true",
        "the same where these sums differ in size, as those of embeddings and layers do",
    ),
    Flag(
        "xla_jf_spmd_threshold_for_windowed_einsum_mib", "1000000",
        "a gathered weight is gathered; cut into a loop of small products and permutes instead, as "
        "happens from 100 MiB on, gpt3_1_3b took an estimated 5.5 s a step and not 1.3 s",
    ),
)  # fmt: skip

# Sources: docs.jax.dev/en/latest/gpu_performance_tips.html, docs.nvidia.com/jax-toolbox. All are
# about several GPUs; a program for one has no collectives to move.
GPU = (
    Flag(
        "xla_gpu_enable_latency_hiding_scheduler", "true",
        "collectives start early and end late, with products between",
    ),
    Flag(
        "xla_gpu_enable_pipelined_all_gather", "true",
        "a scanned stack gathers the weights of the next layer during this one (fsdp)",
    ),
    Flag(
        "xla_gpu_enable_pipelined_reduce_scatter", "true",
        "and scatters the gradients of the last layer during this one (fsdp)",
    ),
    Flag(
        "xla_gpu_enable_pipelined_all_reduce", "true",
        "the same for gradients that are summed whole (data parallelism)",
    ),
    Flag(
        "xla_gpu_enable_while_loop_double_buffering", "true",
        "two layers a turn of the loop: what was gathered ahead is used where it lies",
    ),
    Flag("xla_gpu_all_gather_combine_threshold_bytes", "134217728", "one message for a layer"),
    Flag("xla_gpu_reduce_scatter_combine_threshold_bytes", "67108864", "one message for a layer"),
    Flag("xla_gpu_all_reduce_combine_threshold_bytes", "134217728", "few messages, large ones"),
)  # fmt: skip

# platform -> (environment variable, flags)
PLATFORMS: dict[str, tuple[str, tuple[Flag, ...]]] = {
    "tpu": ("LIBTPU_INIT_ARGS", TPU),
    "gpu": ("XLA_FLAGS", GPU),
}


def environment(platform: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """{variable: value} that a process for this platform should have: ours and the user's flags.

    Args:
      platform: "tpu" or "gpu"; for any other there is nothing to set.
      environ: what the user has set; default: the environment of this process.

    Raises:
      ConfigError: FLAXLM_FLAGS has a value without a meaning.
    """
    environ = os.environ if environ is None else environ
    if "FLAXLM_FLAGS" in environ and environ["FLAXLM_FLAGS"] != "none":
        raise ConfigError(
            f"FLAXLM_FLAGS={environ['FLAXLM_FLAGS']}: only 'none' is known, which adds no compiler "
            "flags to those in LIBTPU_INIT_ARGS and XLA_FLAGS"
        )
    added = _added(platform, environ)
    if not added:
        return {}
    variable = PLATFORMS[platform][0]
    given = environ[variable].split() if variable in environ else []
    return {variable: " ".join([*map(str, added), *given])}


def use(environ: MutableMapping[str, str] | None = None) -> None:
    """Set the flags of the accelerators that this process can see. Call it before jax is imported.

    Twice is as good as once, and a machine without accelerators is left alone.
    """
    environ = os.environ if environ is None else environ
    for platform in platforms(environ):
        environ.update(environment(platform, environ))


def platforms(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The accelerators that jax could find here: those with a plugin, unless JAX_PLATFORMS leaves
    them out.
    """
    environ = os.environ if environ is None else environ
    chosen = [name for name in (environ.get("JAX_PLATFORMS") or "").split(",") if name]
    plugins = {
        "tpu": ("libtpu",),
        "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
    }
    names = {"tpu": {"tpu"}, "gpu": {"gpu", "cuda"}}
    return tuple(
        platform
        for platform, modules in plugins.items()
        if any(importlib.util.find_spec(module) for module in modules)
        and (not chosen or names[platform] & set(chosen))
    )


def summary(platform: str, environ: Mapping[str, str] | None = None) -> str:
    """One line for the banner: the flags that are in effect on this platform; "" if there are none.

    Names lose the prefix that all of them have. Values that differ from ours are the user's.
    """
    environ = os.environ if environ is None else environ
    if platform not in PLATFORMS:
        return ""
    variable, ours = PLATFORMS[platform]
    given = environ[variable].split() if variable in environ else []
    own = {str(flag) for flag in ours}
    words = [text.removeprefix("--").removeprefix("xla_") for text in given if text in own]
    users = [text for text in given if text not in own]
    parts = [f"{len(words)} by flaxlm ({', '.join(words)})"] if words else []
    parts += [f"yours: {' '.join(users)}"] if users else []
    return f"{variable}: {'; '.join(parts)}" if parts else ""


def _added(platform: str, environ: Mapping[str, str]) -> list[Flag]:
    """Our flags that the user has not set."""
    if platform not in PLATFORMS or "FLAXLM_FLAGS" in environ:
        return []
    variable, ours = PLATFORMS[platform]
    given = environ[variable].split() if variable in environ else []
    names = {text.lstrip("-").partition("=")[0] for text in given}
    return [flag for flag in ours if flag.name not in names]

"""Environment variables that hurt, and the encoding of text."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping

from flaxlm import cluster, flags
from flaxlm.errors import UserError, nearest
from flaxlm.health.finding import Finding

# Every variable that flaxlm reads itself.
OURS = (*cluster.EXPLICIT, "FLAXLM_CACHE", "FLAXLM_DISTRIBUTED", "FLAXLM_FLAGS")
OURS += ("FLAXLM_START_TIMEOUT",)
# Read by the tests, by the scripts of tpu/ and by the notebooks.
_ELSEWHERE = ("FLAXLM_TEST_", "FLAXLM_TPU_", "FLAXLM_NOTEBOOK_")

# platform of jax -> the plugins it may come from, and how to install one
_CUDA = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_PLATFORMS = {
    "cpu": (("jaxlib",), "jax"),
    "tpu": (("libtpu",), "jax[tpu]"),
    "cuda": (_CUDA, "jax[cuda13]"),
    "gpu": (_CUDA, "jax[cuda13]"),
}
_SHOWN = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "FLAXLM_", "TF_CPP_", "CUDA_VISIBLE")
_ON, _OFF = ("1", "t", "true", "y", "yes", "on"), ("0", "f", "false", "n", "no", "off")

# variable, the values that hurt (as a pattern for the whole), what they do.
_switched_on = "|".join(_ON)
_HARMFUL = (
    ("JAX_ENABLE_X64", _switched_on, "64-bit numbers where no type is named: twice the memory"),
    ("JAX_DISABLE_JIT", _switched_on, "nothing is compiled: a hundred times slower"),
    ("JAX_DEBUG_NANS", _switched_on, "waits for every result, stops where a step may be skipped"),
    ("JAX_DEBUG_INFS", _switched_on, "waits for every result, and masks are infinite"),
    ("JAX_CHECK_TRACER_LEAKS", _switched_on, "every trace is searched: slow starts"),
    ("JAX_ENABLE_CHECKS", _switched_on, "jax checks itself: slow starts"),
    ("JAX_THREEFRY_PARTITIONABLE", "|".join(_OFF), "dropout then depends on the mesh"),
    ("JAX_ENABLE_COMPILATION_CACHE", "|".join(_OFF), "every start compiles everything again"),
    ("JAX_LEGACY_PRNG_KEY", ".+", "another kind of random keys"),
    ("JAX_DEFAULT_PRNG_IMPL", "(?!threefry2x32$).+", "other random numbers than published runs"),
    ("JAX_RANDOM_SEED_OFFSET", "(?!0$).+", "other random numbers than run.seed says"),
    ("JAX_DEFAULT_MATMUL_PRECISION", ".+", "every product in another precision than published"),
    ("JAX_PLATFORM_NAME", ".+", "its name is JAX_PLATFORMS now"),
    ("XLA_PYTHON_CLIENT_PREALLOCATE", "|".join(_OFF), "memory of a GPU is split into pieces"),
    ("XLA_PYTHON_CLIENT_ALLOCATOR", "platform", "every array asks the driver: very slow"),
    ("TF_CPP_MIN_LOG_LEVEL", "[3-9]", "hides why XLA or a driver fails"),
    ("TF_CPP_MAX_VLOG_LEVEL", "[1-9].*", "floods the log, which costs time"),
    ("TF_XLA_FLAGS", ".+", "no compiler reads it here; XLA_FLAGS is the one"),
    ("CUDA_VISIBLE_DEVICES", "|-1", "hides every GPU"),
    ("PYTHONOPTIMIZE", ".+", "switches off the assertions by which flaxlm checks itself"),
)
# The same for flags in XLA_FLAGS.
_HARMFUL_FLAGS = (
    ("xla_force_host_platform_device_count", "(?!1$).+", "pretends to have several CPU devices"),
    ("xla_backend_optimization_level", "[01]", "slow programs"),
    ("xla_dump_to", ".+", "writes every program to a folder that grows"),
    ("xla_cpu_enable_fast_math", "true|1|", "other numbers, and NaN may go unnoticed"),
)


def environment(
    environ: Mapping[str, str], *, has: Callable[[str], bool] = cluster.has_plugin
) -> Iterator[Finding]:
    """One finding for each variable that hurts or means nothing, and one that shows those that are
    set.

    Args:
      environ: the environment, `os.environ`.
      has: whether a package is installed.
    """
    names = sorted(name for name in environ if name.startswith(_SHOWN) and environ[name])
    shown = ", ".join(f"{name}={environ[name]}" for name in names)
    yield Finding("environment", shown or "none of jax's variables is set")
    for name, pattern, effect in _HARMFUL:
        if name in environ and re.fullmatch(pattern, environ[name].strip(), re.IGNORECASE):
            setting = f"{name}={environ[name]}"
            yield Finding("environment", f"{setting}: {effect}", f"unset {name}, if not meant so")
    yield from _flags(environ)
    yield from _platforms(environ, has)
    yield from _fraction(environ)
    yield from _libraries(environ)
    for name in environ:
        if name.startswith("FLAXLM_") and name not in OURS and not name.startswith(_ELSEWHERE):
            yield Finding("environment", f"{name} is read by nobody", nearest(name, OURS))
    try:
        flags.environment("gpu", environ)
    except UserError as error:
        yield Finding("environment", str(error), "unset FLAXLM_FLAGS", error.code)


def unknown_options(environ: Mapping[str, str], known: Collection[str]) -> Iterator[Finding]:
    """Variables that look like misspelt options of jax, which ignores them.

    Args:
      known: the names of its options, "jax_enable_x64".
    """
    import difflib

    names = {name.upper() for name in known}
    for name in environ:
        if name.startswith("JAX_") and name not in names:
            for close in difflib.get_close_matches(name, names, n=1, cutoff=0.85):
                yield Finding("environment", f"{name} is no option of jax", f"{close}?")


def encoding(*, filesystem: str, preferred: str, output: str) -> Finding:
    """Whether text and the names of files are UTF-8.

    Args:
      filesystem: `sys.getfilesystemencoding()`.
      preferred: `locale.getpreferredencoding(False)`, of files opened without an encoding.
      output: of standard output.
    """
    found = {"file names": filesystem, "files": preferred, "output": output}
    odd = {what: name for what, name in found.items() if name.lower().replace("-", "") != "utf8"}
    if odd:
        text = ", ".join(f"{what} in {name}" for what, name in odd.items())
        return Finding("encoding", text, "export PYTHONUTF8=1 LC_ALL=C.UTF-8")
    return Finding("encoding", "UTF-8")


def _flags(environ) -> Iterator[Finding]:
    for word in environ["XLA_FLAGS"].split() if "XLA_FLAGS" in environ else ():
        name, _, value = word.lstrip("-").partition("=")
        for harmful, pattern, effect in _HARMFUL_FLAGS:
            if name == harmful and re.fullmatch(pattern, value, re.IGNORECASE):
                advice = "take it out of XLA_FLAGS, if not meant so"
                yield Finding("environment", f"{word}: {effect}", advice)


def _platforms(environ, has) -> Iterator[Finding]:
    for name in environ["JAX_PLATFORMS"].split(",") if environ.get("JAX_PLATFORMS") else ():
        setting = f"JAX_PLATFORMS={environ['JAX_PLATFORMS']}"
        if name not in _PLATFORMS:
            advice = nearest(name, _PLATFORMS)
            yield Finding("environment", f"{setting}: {name!r} is no platform known here", advice)
            continue
        plugins, package = _PLATFORMS[name]
        if not any(map(has, plugins)):
            advice = f"pip install '{package}', or unset JAX_PLATFORMS"
            yield Finding("environment", f"{setting}, but jax has no plugin for it", advice)


def _fraction(environ) -> Iterator[Finding]:
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    if name not in environ:
        return
    text = environ[name]
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        yield Finding("environment", f"{name}={text}: is no share", "0.75 is the default", 78)
    elif share < 0.5 or share > 0.95:
        effect = "most of the GPU's memory lies idle" if share < 0.5 else "no room for cuDNN, NCCL"
        yield Finding("environment", f"{name}={text}: {effect}", f"unset {name} (0.75) or 0.9")


def _libraries(environ) -> Iterator[Finding]:
    path = environ["LD_LIBRARY_PATH"] if "LD_LIBRARY_PATH" in environ else ""
    if re.search("cuda|cudnn|nccl", path, re.IGNORECASE):
        yield Finding(
            "environment",
            f"LD_LIBRARY_PATH={path}: hides the CUDA that comes with jax[cuda13]",
            "unset LD_LIBRARY_PATH, unless jax was installed for the CUDA of this machine",
        )

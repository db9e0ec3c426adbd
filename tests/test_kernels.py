"""Every way to attend against the plain one: values and gradients; which way is taken, and why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import sharding
from flaxlm.nn import fused, kernels, masks
from flaxlm.plan import make_plan
from tests import tiny

BATCH, HEADS, HEAD_DIM = 2, 2, 16


def segments(length, *, padded, seed=0):
    """Rows of two texts, with padding (0) at the end if asked for."""
    cut = np.random.default_rng(seed).integers(1, length // 2, (BATCH, 1))
    place = np.arange(length)[None, :]
    ids = np.where(place < cut, 1, 2)
    return np.where(place < length - 30, ids, 0 if padded else 2).astype(np.int32)


def packed(length):
    return masks.same_segment(segments(length, padded=True))


def extra(queries, keys):
    seen = np.random.default_rng(3).random((BATCH, 1, queries, keys)) < 0.5
    return masks.Mask(extra=seen | np.eye(queries, keys, dtype=bool))


# name: (queries, keys, mask, whether a bias is added); 384 is three blocks of 128.
CASES = {
    "nothing": (256, 256, masks.Mask, False),
    "causal": (384, 384, masks.causal, False),
    "segments": (256, 256, lambda: masks.same_segment(segments(256, padded=False)), False),
    "padding": (384, 384, lambda: packed(384), False),
    "causal, padding": (384, 384, lambda: packed(384) & masks.causal(), False),
    "band": (384, 384, lambda: packed(384) & masks.causal() & masks.near(100), False),
    "band switched on": (
        256, 256, lambda: (masks.causal() & masks.near(9)).replace(banded=jnp.array(True)), False,
    ),
    "band switched off": (
        256, 256, lambda: (masks.causal() & masks.near(9)).replace(banded=jnp.array(False)), False,
    ),
    "cross": (
        128, 256,
        lambda: masks.same_segment(segments(128, padded=True), segments(256, padded=True, seed=1)),
        False,
    ),
    "array": (128, 256, lambda: extra(128, 256), False),
    "bias": (128, 256, lambda: extra(128, 256), True),
}  # fmt: skip


NARROW = ("causal", "cross", "bias")  # cases in bfloat16


def on_gpu():
    return jax.default_backend() == "gpu"


class Shared:
    """What holds of every path."""

    path: str
    dtypes = ("float32", "bfloat16")

    @pytest.fixture(params=CASES, ids=CASES)
    def case(self, request):
        return request.param

    @pytest.fixture
    def dtype(self, case):
        """Each case in one type: kernels differ by case, rounding by type."""
        wide = "float32" in self.dtypes and case not in NARROW
        return "float32" if wide else "bfloat16"

    def test_values_and_gradients_are_the_plain_ones(self, case, dtype):
        queries, keys, make_mask, biased = CASES[case]
        mask, rng = make_mask(), np.random.default_rng(1)

        def draw(*shape):
            return jnp.asarray(rng.normal(size=shape), jnp.float32)

        q = draw(BATCH, queries, HEADS, HEAD_DIM).astype(dtype)
        k, v = (draw(BATCH, keys, HEADS, HEAD_DIM).astype(dtype) for _ in range(2))
        bias = draw(1, HEADS, queries, keys) if biased else None
        if self.path in fused.KERNELS.values():
            obstacle = fused.obstacle(self.path, q, k, mask, bias)
            if obstacle is not None:
                pytest.skip(obstacle)  # by the rule of path_of it is not asked to
        weight = draw(BATCH, queries, HEADS, HEAD_DIM)

        def run(attend, *arrays):
            def total(q, k, v, bias):
                out = attend(q, k, v, mask, bias)
                assert out.shape == q.shape and out.dtype == q.dtype
                return (out.astype(jnp.float32) * weight).sum(), out

            found = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
            return [np.asarray(x, np.float32) for x in jax.tree.leaves(found)]

        wide = [None if x is None else x.astype(jnp.float32) for x in (q, k, v, bias)]
        expected = run(kernels.reference, *wide)
        found = run(kernels.PATHS[self.path], q, k, v, bias)
        assert len(found) == 4 + biased
        tolerance = 2e-5 if dtype == "float32" else 3e-2
        for one, other in zip(found, expected, strict=True):
            assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


class TestReference(Shared):
    path = "reference"


class TestChunked(Shared):
    path = "chunked"

    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch):
        monkeypatch.setattr(kernels, "CHUNK_BYTES", 4 * BATCH * HEADS * 384 * 40)


class TestSplash(Shared):
    path = "splash"


@pytest.mark.skipif(not on_gpu(), reason="cuDNN needs a GPU: FLAXLM_TEST_PLATFORMS=cuda")
class TestCudnn(Shared):
    path = "cudnn"
    dtypes = ("bfloat16",)


def test_a_query_that_sees_nothing_is_finite_and_moves_nothing():
    mask = masks.same_segment(np.full((1, 128), 3, np.int32), np.zeros((1, 256), np.int32))
    q, k = jnp.ones((1, 128, 1, 16)), jnp.ones((1, 256, 1, 16))

    def total(q, k, v):
        return fused.splash(q, k, v, mask).sum()

    value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, k)
    assert value == 0 and all((gradient == 0).all() for gradient in gradients)


def test_kernels_run_on_every_devices_rows_and_heads():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 128, 4, 16)), jnp.float32) for _ in range(3))
    mask = masks.same_segment(segments(128, padded=True)) & masks.causal()
    expected = kernels.reference(q, k, v, mask)
    mesh = sharding.Mesh(data=2, tensor=2, sequence=2)
    with sharding.using(sharding.make_layout(mesh)):
        found = jax.jit(lambda *arrays: fused.splash(*arrays, mask))(q, k, v)
    assert found.addressable_shards[0].data.shape == (1, 128, 1, 16)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def chosen(monkeypatch, platform, *, queries=256, keys=256, heads=4, head_dim=64, dtype="bfloat16",
           mask=None, bias=None, dropout=None):  # fmt: skip
    monkeypatch.setattr(kernels, "platform", lambda: platform)
    q = jax.ShapeDtypeStruct((2, queries, heads, head_dim), jnp.dtype(dtype))
    k = jax.ShapeDtypeStruct((2, keys, heads, head_dim), jnp.dtype(dtype))
    return kernels.path_of(q, k, mask or masks.causal(), bias, dropout)


BAND = masks.causal() & masks.near(8)
ARRAY = masks.Mask(extra=jax.ShapeDtypeStruct((2, 1, 256, 256), bool))
SEGMENTS = masks.same_segment(jax.ShapeDtypeStruct((2, 256), jnp.int32))
BIAS = jax.ShapeDtypeStruct((1, 4, 256, 256), jnp.float32)
PER_ROW = jax.ShapeDtypeStruct((2, 4, 256, 256), jnp.float32)


@pytest.mark.parametrize(
    ("platform", "asked", "name", "reason"),
    [
        ("cpu", {}, "reference", "no kernel for cpus"),
        ("cpu", {"queries": 2**15, "keys": 2**15}, "chunked", "32.0 GiB of scores per device"),
        ("tpu", {}, "splash", "kernel for tpus"),
        ("tpu", {"mask": BAND}, "splash", "kernel for tpus"),
        ("tpu", {"mask": SEGMENTS, "dtype": "float32"}, "splash", "kernel for tpus"),
        ("tpu", {"mask": ARRAY}, "reference", "array of booleans"),
        ("tpu", {"mask": masks.near(8)}, "reference", "causal self-attention alone"),
        ("tpu", {"bias": BIAS}, "reference", "adds nothing to scores"),
        ("tpu", {"bias": PER_ROW}, "reference", "relative scores of every row"),
        ("tpu", {"dropout": lambda w: w}, "reference", "dropout of attention weights"),
        ("tpu", {"queries": 200}, "reference", "multiples of 128"),
        ("gpu", {}, "cudnn", "kernel for gpus"),
        ("gpu", {"mask": ARRAY}, "cudnn", "kernel for gpus"),
        ("gpu", {"mask": SEGMENTS, "queries": 2**14, "keys": 2**14}, "chunked", "too large"),
        ("gpu", {"dtype": "float32"}, "reference", "16 bits, not in float32"),
        ("gpu", {"bias": BIAS}, "reference", "gradient of a bias"),
        ("gpu", {"head_dim": 20}, "reference", "multiples of 8, not 20"),
    ],
)
def test_the_rule(monkeypatch, platform, asked, name, reason):
    path = chosen(monkeypatch, platform, **asked)
    assert path.name == name and reason in path.reason


def test_heads_that_do_not_divide_go_to_xla(monkeypatch):
    with sharding.using(sharding.abstract_layout(sharding.Mesh(data=1, sequence=8), 8)):
        assert "do not divide" in chosen(monkeypatch, "tpu", heads=4).reason
        assert chosen(monkeypatch, "tpu", heads=8).name == "splash"


def test_a_plan_says_which_way_its_layers_take():
    layout = sharding.make_layout(sharding.Mesh(), jax.devices()[:1])
    plan = make_plan(tiny.EXPERIMENT, layout, tiny.VOCABULARY.blank())
    way, _, layers = plan.attention.partition(": ")
    assert way == "reference (dropout of attention weights)"
    assert "encoder/layers/attention 64 x 64" in layers.split(", ")
    assert sum("cross_attention" in layer for layer in layers.split(", ")) == 1


@pytest.mark.parametrize("policy, kernels_run", [("attention", 3), ("nothing", 4)])
def test_saving_attention_saves_the_second_forward_pass(policy, kernels_run):
    """Of the TPU kernel, whose interpretation is one loop per run: forward and twice backward, and
    forward again unless its residuals are kept.
    """
    saved = jax.checkpoint_policies.save_only_these_names(policy)

    def layer(q):
        return fused.splash(jnp.sin(q), q, q, masks.causal())

    def total(q):
        return jnp.sin(jax.checkpoint(layer, policy=saved)(q)).sum()

    program = jax.jit(jax.grad(total)).lower(jnp.ones((1, 128, 2, 16))).compile()
    assert program.as_text().count(" while(") == kernels_run


AHEAD = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from flaxlm import sharding
from flaxlm.nn import kernels, masks

for chip in ("v5e:2x2", "v5p:2x2x1"):
    devices = topologies.get_topology_desc(chip, platform="tpu").devices
    layout = sharding.make_layout(sharding.Mesh(data=1, fsdp=2, sequence=2), devices)
    for length, head_dim, mask in [
        (2048, 64, masks.causal() & masks.near(256)),
        (8192, 128, masks.Mask()),
        (32768, 128, masks.causal()),
    ]:
        def total(q, k, v, segments, banded):
            own = masks.same_segment(segments) & mask
            if mask.band is not None:
                own = own.replace(banded=banded)
            return kernels.attend(q, k, v, own).astype(jnp.float32).sum()

        def shape(dtype, *dims):
            axes = ("batch", "length", "heads", "head_dim")[: len(dims)]
            return jax.ShapeDtypeStruct(dims, dtype, sharding=layout.sharding(axes))

        q = shape(jnp.bfloat16, 2, length, 2, head_dim)
        segments = shape(jnp.int32, 2, length)
        with sharding.using(layout), kernels.recorded() as found:
            step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
            banded = jax.ShapeDtypeStruct((), bool)
            compiled = step.lower(q, q, q, segments, banded).compile()
        text = compiled.as_text()
        print(chip, length, *(path.name for path in found), text.count("tpu_custom_call"),
              "all-to-all" in text)
"""


@pytest.mark.slow
@pytest.mark.libtpu
def test_the_tpu_kernel_compiles_ahead_of_time(run_for_tpus):
    """Forward and backward, 2k, 8k and 32k tokens, rows over two devices and heads over two."""
    said = run_for_tpus(AHEAD)
    lines = [line for line in said.splitlines() if " splash " in line]
    assert lines == [
        f"{chip} {length} splash {calls} True"
        for chip in ("v5e:2x2", "v5p:2x2x1")
        for length, calls in ((2048, 6), (8192, 3), (32768, 3))
    ]

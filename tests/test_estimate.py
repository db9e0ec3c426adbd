"""The reader of compiled text and the estimate that rests on it: small programs written by hand
with literal numbers, programs compiled for a CPU, one compiled for a TPU that is not there.
"""
# ruff: noqa: E501  lines of compiled programs are as long as they are

import json

import jax
import jax.numpy as jnp
import pytest

from flaxlm.aot import hlo
from flaxlm.aot.chips import CHIPS
from flaxlm.aot.estimate import estimate
from flaxlm.aot.traffic import wire_seconds
from flaxlm.metrics import peak_flops

V5P = CHIPS["v5p"]

# A loop of 12 turns around an all-gather that runs beside a product, and an all-reduce after it.
LOOP = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%product (p0: bf16[64,256], p1: bf16[256,512]) -> bf16[64,512] {
  %p0 = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[64,512]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[64,256], bf16[32,512])) -> (s32[], bf16[64,256], bf16[32,512]) {
  %state = (s32[]{:T(128)}, bf16[64,256]{1,0}, bf16[32,512]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[64,256]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[32,512]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %all-gather-start.1 = (bf16[32,512]{1,0}, bf16[256,512]{1,0:S(1)}) all-gather-start(%w), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %fusion.1 = bf16[64,512]{1,0} fusion(%x, %other), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"1750"}
  %all-gather-done.1 = bf16[256,512]{1,0:S(1)} all-gather-done(%all-gather-start.1)
  %copy.1 = bf16[64,512]{0,1} copy(%fusion.1), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %tuple.1 = (s32[], bf16[64,256], bf16[32,512]) tuple(%i, %x, %w)
}

%condition (state: (s32[], bf16[64,256], bf16[32,512])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[64,256]{1,0}, bf16[32,512]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %unrelated = s32[]{:T(128)} constant(99)
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (p: bf16[64,256], q: bf16[32,512]) -> f32[512] {
  %p = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[32,512]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[], bf16[64,256], bf16[32,512]) tuple(%zero, %p, %q)
  %while.1 = (s32[]{:T(128)}, bf16[64,256]{1,0}, bf16[32,512]{1,0}) while(%init), condition=%condition, body=%body
  %loss = f32[512]{0:T(512)} fusion(%p), kind=kLoop, calls=%add, backend_config={"estimated_cycles":"3500"}
  ROOT %all-reduce.1 = f32[512]{0:T(512)} all-reduce(%loss), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""


def test_a_loop_counts_its_turns():
    found = estimate(LOOP, V5P)
    assert found.flops == 12 * 2 * 64 * 256 * 512
    assert found.collectives == {"all-gather": (12, 12 * 256 * 512 * 2), "all-reduce": (1, 2048)}
    assert [(x.kind, x.group) for x in found.traffic] == [("all-gather", 8), ("all-reduce", 4)]
    assert found.cycles == 12 * 1750 + 3500  # 2^63 - 1 says "not known"
    assert found.matmul_cycles == 12 * 1750


def test_seconds_add_up_and_what_runs_beside_is_hidden():
    found = estimate(LOOP, V5P)
    gather = 256 * 512 * 2 * 7 / 8 / (2 * 9e10)  # 1.3 us beside a product of 1 us
    reduce = 2 * 2048 * 3 / 4 / (2 * 9e10)
    assert found.breakdown["collectives"] == pytest.approx(12 * (gather - 1e-6) + reduce)
    assert found.breakdown["matmul"] == pytest.approx(12e-6)
    assert found.breakdown["elementwise"] == pytest.approx(2e-6)
    assert found.step_seconds == pytest.approx(sum(found.breakdown.values()))
    assert found.ici_seconds == pytest.approx(12 * gather + reduce)
    assert found.mfu(found.flops) == pytest.approx(
        found.flops / V5P.peak_flops / found.step_seconds
    )


def test_on_chip_memory_is_no_hbm():
    # Per turn: x and the result of the product (the gathered matrix lies on the chip), and a copy
    # that reads and writes; after the loop p, the result, and twice what is reduced.
    turn = 64 * 256 * 2 + 3 * 64 * 512 * 2
    assert estimate(LOOP, V5P).hbm_bytes == 12 * turn + 64 * 256 * 2 + 512 * 4


def test_a_group_that_crosses_slices_is_slow():
    near, far = (estimate(LOOP, V5P, slices=slices) for slices in (1, 2))
    assert {x.kind: x.crosses for x in far.traffic} == {"all-gather": True, "all-reduce": False}
    payload = 256 * 512 * 2
    wire = payload * 3 / 4 / (2 * 9e10) + payload / 4 / 2 / 6.25e9
    gathers = {x.kind: x.seconds for x in far.traffic}["all-gather"]
    assert gathers == pytest.approx(12 * wire)
    assert far.step_seconds > near.step_seconds


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_groups_in_every_notation(text, group):
    line = f"  ROOT %x = f32[4]{{0}} all-reduce(%p), channel_id=1, {text}, to_apply=%add"
    module = hlo.parse(f"HloModule m, num_partitions=8\n\nENTRY %e () -> f32[4] {{\n{line}\n}}\n")
    (instruction,) = module.instructions("e")
    assert instruction.group(module.partitions) == group


def test_only_taps_that_meet_the_input_count():
    # A TPU's batched product: 4 x 32 products [128, 64] x [64, 256], as windows over dims of which
    # one position each meets the input.
    text = """\
HloModule m

ENTRY %e (l: bf16[4,32,64,128], r: bf16[4,64,32,256]) -> bf16[4,32,128,256] {
  %l = bf16[4,32,64,128]{2,3,1,0} parameter(0)
  %r = bf16[4,64,32,256]{3,1,2,0} parameter(1)
  ROOT %c = bf16[4,32,128,256]{2,3,1,0} convolution(%l, %r), window={size=4x32 stride=3x31 lhs_dilate=4x32}, dim_labels=01fb_0i1o->01bf
}
"""
    assert estimate(text, V5P).flops == 4 * 32 * 2 * 128 * 64 * 256


def test_a_convolution_counts_like_one_by_hand():
    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 1), ((1, 1), (2, 0)), rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    x, kernel = jnp.zeros((2, 9, 7, 3)), jnp.zeros((3, 2, 3, 5))
    counts = jax.vjp(lambda x: convolved(x, jnp.ones_like(kernel)), jnp.ones_like(x))[0]
    text = jax.jit(convolved).lower(x, kernel).compile().as_text()
    assert " convolution(" in text
    # With ones everywhere a result is the number of its products.
    assert estimate(text, V5P).flops == 2 * float(counts.sum())


@pytest.mark.parametrize("trips", [1, 7])
def test_a_compiled_loop_of_products(trips):
    def step(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=trips)[0].sum()

    x, w = jnp.ones((48, 96)), jnp.ones((96, 96))
    text = jax.jit(jax.grad(step, argnums=1)).lower(x, w).compile().as_text()
    # Forward, and backward one for w, one for x, which the first turn's needs not.
    least = (3 * trips - 1) * 2 * 48 * 96 * 96
    assert least <= estimate(text, V5P).flops <= 3 * trips * 2 * 48 * 96 * 96


def test_a_sharded_program_says_what_it_gathers():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("fsdp",), ())
    )
    gather = jax.jit(lambda w: w * 2, in_shardings=rows, out_shardings=whole)
    text = gather.lower(jax.ShapeDtypeStruct((64, 16), jnp.float32)).compile().as_text()
    found = estimate(text, V5P)
    assert found.collectives == {"all-gather": (1, 64 * 16 * 4)}
    assert [x.group for x in found.traffic] == [8]


def test_an_update_brings_the_operands_of_a_start_without_any():
    # TPU7x: collectives on the sparse core, inside a computation that is called beside the rest.
    text = """\
HloModule m, num_partitions=8

%called (p: bf16[128,512]) -> bf16[1024,512] {
  %p = bf16[128,512]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[1024,512]{1,0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
}, execution_thread="sparsecore"

ENTRY %e (w: bf16[128,512], x: f32[8]) -> bf16[1024,512] {
  %w = bf16[128,512]{1,0} parameter(0)
  %x = f32[8]{0} parameter(1)
  %start = ((), (), (s32[1]{0:S(2)})) call-start(), async_execution_thread="sparsecore", to_apply=%called
  %before = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"2200"}
  %update = ((bf16[128,512]{1,0}), bf16[1024,512]{1,0}) call-update(%start, %w)
  %beside = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"4400"}
  ROOT %done = bf16[1024,512]{1,0} call-done(%update)
}
"""
    chip = CHIPS["tpu7x"]
    found = estimate(text, chip)
    wire = wire_seconds("all-gather", 1024 * 512 * 2, 8, chip)
    assert found.collectives == {"all-gather": (1, 1024 * 512 * 2)}
    assert found.step_seconds == pytest.approx(3e-6 + wire - 2e-6)
    assert found.breakdown["collectives"] == pytest.approx(wire - 2e-6)


KERNEL = """\
HloModule m

ENTRY %e (g: s8[1,4,4], q: bf16[2,4,1024,128], k: bf16[2,4,1024,128]) -> bf16[2,4,1024,128] {
  %g = s8[1,4,GRID]{2,1,0} parameter(0)
  %q = bf16[2,4,1024,128]{3,2,1,0} parameter(1)
  %k = bf16[2,4,1024,128]{3,2,1,0} parameter(2)
  %iota.1.q_sequence_ref = s32[1024,128]{1,0} iota(), iota_dimension=0
  %NAME = (bf16[2,4,1024,128]{3,2,1,0}, f32[2,4,1024]{2,1,0}) custom-call(OPERANDS), custom_call_target="TARGET", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q_dq\\": 256, \\"block_kv_dq\\": 256}"
}}, metadata={op_name="jit(f)/attention/call"}, backend_config={CONFIG}
  ROOT %r = bf16[2,4,1024,128]{3,2,1,0} get-tuple-element(%NAME), index=0
}
"""
PAIRS = 2 * 4 * 1024 * 1024 * 128 * 2  # FLOPs of one product over all pairs
SPLASH, CAUSAL = "tpu_custom_call", "%g, %q, %k, %k, %iota.1.q_sequence_ref"


def kernel(name, target, operands, *, grid=4, config=""):
    words = {"NAME": name, "TARGET": target, "OPERANDS": operands, "GRID": str(grid)}
    text = KERNEL.replace("CONFIG", config)
    for word, value in words.items():
        text = text.replace(word, value)
    return text


@pytest.mark.parametrize(
    "text, products",
    [
        (kernel("splash_mha_fwd_residuals.2", SPLASH, CAUSAL), 2 / 2),
        (kernel("splash_mha_fwd_residuals.2", SPLASH, "%g, %q, %k, %k"), 2),
        (kernel("splash_mha_fwd_residuals.2", SPLASH, CAUSAL, grid=1), 2 / 4),
        (kernel("splash_mha_dkv_no_residuals", SPLASH, CAUSAL), 5 / 2),
        (kernel("splash_mha_dq_no_residuals", SPLASH, CAUSAL), 3 / 2),
        (
            kernel("call.1", "__cudnn$fmhaSoftmax", "%q, %k, %k", config='"mask_type":"CAUSAL"'),
            2 / 2,
        ),
        (
            kernel(
                "call.1", "__cudnn$fmhaSoftmaxBackward", "%q, %k", config='"mask_type":"NO_MASK"'
            ),
            5,
        ),
    ],
)
def test_attention_kernels_by_their_shapes(text, products):
    found = estimate(text, V5P)
    assert found.flops == products * PAIRS
    assert found.breakdown["attention"] == pytest.approx(found.flops / V5P.peak_flops / 0.5)


def test_a_kernel_nobody_knows_is_named():
    text = kernel("mine.1", "tpu_custom_call", CAUSAL).replace("jit(f)/attention", "jit(f)")
    found = estimate(text, V5P)
    assert found.flops == 0 and dict(found.unpriced) == {"mine.1": 1}


def test_text_of_another_kind_is_refused():
    with pytest.raises(hlo.HloError, match="ENTRY"):
        estimate("module @jit_f {}", V5P)


def test_chips_agree_with_the_peaks_of_the_metrics():
    assert set(CHIPS) == {"v4", "v5e", "v5p", "v6e", "tpu7x", "v7", "h100", "h200"}
    assert V5P.peak_flops == peak_flops("TPU v5p") == 459e12
    for chip in CHIPS.values():
        # Bytes per FLOP and seconds to read the memory once: units slip by powers of ten.
        assert 100 < chip.peak_flops / chip.hbm_bandwidth < 1000
        assert 0.005 < chip.hbm_bytes / chip.hbm_bandwidth < 0.05


TPU_PROGRAM = """
import json, sys
from flaxlm.aot import devices, topologies
topology = topologies.parse("v5p:4x4x4")
devices.prepare_environment(topology)
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from flaxlm import sharding
from flaxlm.aot.estimate import estimate

target = devices.target(topology)
mesh = sharding.make_layout(sharding.Mesh(data=1, fsdp=64), target.devices).mesh
rows, split = (NamedSharding(mesh, P(*axes)) for axes in (("fsdp",), (None, "fsdp", None)))

def step(x, w):
    layer = lambda x, w: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None)
    return jax.lax.scan(layer, x, w)[0]

x = jax.ShapeDtypeStruct((64 * 1024, 2048), jnp.bfloat16)
w = jax.ShapeDtypeStruct((3, 2048, 2048), jnp.bfloat16)
program = jax.jit(step, in_shardings=(rows, split), out_shardings=rows).lower(x, w).compile()
found = estimate(program.as_text(), target.chip)
json.dump(
    dict(flops=found.flops, collectives=found.collectives, step=found.step_seconds,
         compute=found.compute_seconds), sys.stdout)
"""


@pytest.mark.libtpu
def test_a_program_for_a_tpu_that_is_not_here(run_for_tpus):
    found = json.loads(run_for_tpus(TPU_PROGRAM))
    assert found["flops"] == 3 * 2 * 1024 * 2048 * 2048  # of one of 64 parts of the rows
    # A torus gathers by gathering; a compiler that takes the slice for a grid adds up zeros.
    assert found["collectives"] == {"all-gather": [3, 3 * 2048 * 2048 * 2]}
    assert found["compute"] < found["step"] < 100 * found["compute"]

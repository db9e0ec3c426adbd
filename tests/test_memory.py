"""What the compiled train step holds in memory: remat policies, the loss over a split vocabulary,
donated state, gradients under accumulation.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import chunks, losses, named, optim, sharding, step
from flaxlm.data.spec import Vocabulary
from flaxlm.errors import ConfigError
from flaxlm.models import gpt2
from flaxlm.nn.compute import POLICIES, Compute
from flaxlm.objectives.causal_lm import StreamLM
from flaxlm.plan import Plan, trace_features
from tests import gpts


def plan_of(layout, size, *, compute=None, rows=8, length=128):
    """A small run, traced."""
    model = gpt2.Model(size, compute or Compute(remat="full"))
    blank = Vocabulary(size=size.vocab, kind="bytes", sentinels=0).blank()
    features = trace_features(StreamLM(), length=length, batch=rows, vocab=blank)
    boxed = jax.eval_shape(lambda: step.init_params(model, features, seed=0))
    axes = named.axes_of(boxed)
    tx = optim.AdamW(optim.Constant(1e-3)).build(axes, 10)
    state = jax.eval_shape(step.make_init(model, tx, features, seed=0))
    return Plan(model, StreamLM(), layout, {0: features}, state, axes, tx)


def compiled(plan, *, accumulate=1):
    program = step.jit_programs(plan, seed=0, accumulate=accumulate).step
    return program.lower(plan.state, plan.features).compile()


def one_device():
    return sharding.make_layout(sharding.Mesh(data=1), jax.devices()[:1])


# --- remat -----------------------------------------------------------------------------------

WIDE = gpt2.Size(4, 128, 512, 2, head_dim=64, vocab=512, positions=128, dropout=0.0)
KEEPING = [name for name in POLICIES if name != "offload"]  # as attention, elsewhere


def test_policies_keep_more_from_one_to_the_next():
    kept = {}
    with sharding.using(one_device()) as layout:
        for name in KEEPING:
            found = compiled(plan_of(layout, WIDE, compute=Compute(remat=name)))
            kept[name] = found.memory_analysis().temp_size_in_bytes
    assert sorted(kept, key=kept.get) == KEEPING, kept
    assert len(set(kept.values())) == len(kept), kept


def test_policies_compute_the_same():
    size = replace(gpt2.SIZES["tiny"], dropout=0.1)
    batch = gpts.make_batch()
    params, _ = gpts.init(gpt2.Model(size), batch)
    seen = {
        name: jax.jit(
            jax.value_and_grad(
                lambda p, name=name: gpts.loss(gpt2.Model(size, Compute(remat=name)), batch, p)
            )
        )(params)
        for name in ("none", "attention", "minimal", "offload")
    }
    for name in seen:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            seen[name],
            seen["none"],
        )


def test_offloading_to_where_the_memory_is_the_same_is_refused():
    with (
        sharding.using(one_device()) as layout,
        pytest.raises(ConfigError, match=r"compute\.remat='offload': .* take 'attention'"),
    ):
        plan_of(layout, WIDE, compute=Compute(remat="offload"))


FOR_A_TPU = """
import jax
from jax.experimental import topologies
from flaxlm import sharding, step
from flaxlm.nn.compute import Compute
from tests import test_memory

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[:1]
with sharding.using(sharding.make_layout(sharding.Mesh(data=1), devices)) as layout:
    for name in ("qkv", "attention", "offload"):
        compute = Compute("bfloat16", remat=name)
        plan = test_memory.plan_of(layout, test_memory.WIDE, compute=compute)
        text = step.jit_programs(plan, seed=0, accumulate=1).step.lower(
            plan.state, plan.features
        ).as_text()
        print(name, text.count("@tpu_custom_call"), text.count("annotate_device_placement"))
"""


@pytest.mark.libtpu
def test_the_attention_kernel_does_not_run_again(run_for_tpus):
    """Traced for a TPU: forward, backward in two kernels, and once more where it is not kept."""
    said = run_for_tpus(FOR_A_TPU)
    seen = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert seen["qkv"] == "4 0"
    assert seen["attention"] == "3 0"
    calls, moves = map(int, seen["offload"].split())
    assert calls == 3 and moves >= 10, "five arrays to the host and back"


# --- the loss --------------------------------------------------------------------------------


def test_the_logits_of_a_long_batch_are_never_whole(monkeypatch):
    """8,192 tokens, 50,257 entries: the whole step, compiled with and without chunks."""
    size = gpt2.Size(1, 64, 256, 1, head_dim=64, vocab=50257, dropout=0.0)
    temporary = {}
    with sharding.using(one_device()) as layout:
        plan = plan_of(layout, size, length=1024)
        for name, limit in {"whole": 2**62, "chunked": losses.CHUNK_BYTES}.items():
            monkeypatch.setattr(losses, "CHUNK_BYTES", limit)
            temporary[name] = compiled(plan).memory_analysis().temp_size_in_bytes
    logits = 8 * 1024 * 50304 * 4
    print({name: f"{size / 2**20:.0f} MiB" for name, size in temporary.items()})
    assert temporary["whole"] - temporary["chunked"] >= logits


MESHES = [
    sharding.Mesh(data=8),
    sharding.Mesh(data=1, fsdp=8),
    sharding.Mesh(data=2, fsdp=2, tensor=2),
    sharding.Mesh(data=1, fsdp=2, tensor=2, sequence=2),
]
VOCAB, ROWS, LENGTH, WIDTH = 1000, 8, 64, 32


def head_and_targets(*, transposed, bias):
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.array(random.normal(size=shape), jnp.float32)

    hidden, kernel = (
        draw(ROWS, LENGTH, WIDTH),
        draw(*((1024, WIDTH) if transposed else (WIDTH, 1024))),
    )
    head = losses.Readout(
        hidden, kernel, draw(1024) if bias else None, vocab=VOCAB, transposed=transposed
    )
    return head, jnp.array(random.integers(0, VOCAB, (ROWS, LENGTH)), jnp.int32)


def total(head, targets):
    nll, log_z = losses.cross_entropy(head, targets)
    return (nll * jnp.cos(log_z)).mean()


def soft_total(head, targets):
    teacher = head.replace(hidden=head.hidden[:, ::-1])
    return losses.soft_cross_entropy(head, teacher, 2.0).mean() + 0 * targets.sum()


def laid_out(head, layout):
    names = ("vocab", "embed") if head.transposed else ("embed", "vocab")
    return head.replace(
        hidden=jax.device_put(head.hidden, layout.sharding(("batch", "length", "width"))),
        kernel=jax.device_put(head.kernel, layout.sharding(names)),
        bias=None if head.bias is None else jax.device_put(head.bias, layout.sharding(("vocab",))),
    )


@pytest.mark.parametrize("function", [total, soft_total])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("limit", [2**30, 2**15], ids=["whole", "chunked"])
def test_a_split_vocabulary_scores_the_same(monkeypatch, mesh, limit, function):
    monkeypatch.setattr(losses, "CHUNK_BYTES", limit)
    bias = function is total
    head, targets = head_and_targets(transposed=bias, bias=bias)
    expected = jax.value_and_grad(function, allow_int=True)(head, targets)
    with sharding.using(sharding.make_layout(mesh)) as layout:
        found = jax.jit(jax.value_and_grad(function, allow_int=True))(
            laid_out(head, layout), targets
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected
    )


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_devices_exchange_the_kernel_once(monkeypatch, mesh):
    """No device has the logits of another's entries, and the loop moves nothing of the kernel's
    size.
    """
    monkeypatch.setattr(losses, "CHUNK_BYTES", 2**15)
    head, targets = head_and_targets(transposed=True, bias=False)
    with sharding.using(sharding.make_layout(mesh)) as layout:
        assert losses._chunks(head) > 1
        kernel = layout.sharding(("vocab", "embed"))
        program = jax.jit(
            jax.grad(lambda kernel, head: total(head.replace(kernel=kernel), targets)),
            out_shardings=kernel,
        )
        head = laid_out(head, layout)
        text = program.lower(head.kernel, head).compile().as_text()
    entries = 1024 // mesh.tensor
    moved = re.findall(r"= (\S+) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text)
    large = [found for found in moved if str(entries) in re.split(r"\D+", found[0])]
    assert large and len(large) <= 3, moved  # gathered, reduced, and over the rest of the axes
    loops = re.split(r"\nENTRY ", text)[0]
    inside = re.findall(
        r"= (\S+) (?:all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", loops
    )
    assert not [shape for shape in inside if str(entries) in re.split(r"\D+", shape)], inside
    if mesh.tensor > 1:
        assert not re.search(r"f32\[[\d,]*,1024\]", text), "logits of the whole vocabulary"


def test_parts_are_put_together_again():
    x = jnp.arange(2 * 12 * 3).reshape(2, 12, 3)
    parts = chunks.split(x, 4)
    assert parts.shape == (4, 2, 3, 3)
    np.testing.assert_array_equal(parts[1], x[:, 1::4])
    np.testing.assert_array_equal(chunks.join(parts), x)


# --- state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", [sharding.Mesh(data=1), sharding.Mesh(data=2, fsdp=2, tensor=2)])
def test_every_buffer_of_the_state_is_written_in_place(mesh):
    devices = jax.devices()[: 8 if mesh.fsdp > 1 else 1]
    with sharding.using(sharding.make_layout(mesh, devices)) as layout:
        plan = plan_of(layout, gpt2.SIZES["tiny"], rows=8)
        text = compiled(plan, accumulate=2).as_text()
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", text).group(1)
    written = {int(number) for number in re.findall(r": \((\d+), \{\}", aliases)}
    leaves = len(jax.tree.leaves(plan.state))
    assert written == set(range(leaves)), "the state comes first among the arguments"


def test_gradients_are_held_once_under_accumulation():
    """Beside what a micro-batch needs there is one sum of gradients, in fp32."""
    size = gpt2.Size(2, 256, 1024, 4, head_dim=64, vocab=512, positions=128, dropout=0.0)
    with sharding.using(one_device()) as layout:
        alone = compiled(plan_of(layout, size, rows=2)).memory_analysis()
        plan = plan_of(layout, size, rows=8)
        four = compiled(plan, accumulate=4).memory_analysis()
    gradients = 4 * plan.parameters
    assert four.temp_size_in_bytes <= alone.temp_size_in_bytes + 1.2 * gradients

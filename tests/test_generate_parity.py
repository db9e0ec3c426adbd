"""Generation equals transformers' token for token, on the same random weights."""

import sys

import jax
import numpy as np
import pytest

from flaxlm.convert import bart as convert_bart
from flaxlm.convert import bert as convert_bert
from flaxlm.convert import gpt2 as convert_gpt2
from flaxlm.convert import t5 as convert_t5
from flaxlm.convert import table
from flaxlm.decode import Settings
from flaxlm.decode.fill import best
from flaxlm.decode.prompts import Reader, generate
from flaxlm.models import bart, gpt2, t5
from tests import encoders
from tests.gpts import PARITY, load

CASES = load(PARITY / "generate_cases.py")
# family: (cases, goldens of its weights, start of their names, converter, model)
KINDS = {
    "gpt2": ("gpt_cases", "gpt_c", "gpt2/", convert_gpt2, gpt2.Model),
    "t5_v1_0": ("t5_cases", "t5_c", "v1_0/", convert_t5, t5.ModelV10),
    "t5_v1_1": ("t5_cases", "t5_c", "v1_1/", convert_t5, t5.Model),
    "bart": ("bart_cases", "bart_c", "", convert_bart, bart.Model),
}


@pytest.fixture(scope="module")
def made():
    """Per family: model and parameters."""
    found = {}

    def get(family):
        if family not in found:
            cases, golden, start, convert, kind = KINDS[family]
            cases, data = load(PARITY / f"{cases}.py"), np.load(PARITY / f"{golden}.npz")
            start += "shape/"
            names = [name.removeprefix(start) for name in data.files if name.startswith(start)]
            tensors = {name: cases.tensor(name, tuple(data[start + name])) for name in names}
            numbers = {k: v for k, v in cases.SIZES["c"].items() if k != "band"}
            size = sys.modules[kind.__module__].Size(**numbers)
            model = kind(size)
            params = table.read(
                convert.table(model), tensors, ignored=convert.IGNORED, aliases=convert.ALIASES,
                prefix=convert.PREFIX,
            )  # fmt: skip
            found[family] = model, jax.tree.map(jax.numpy.asarray, params)
        return found[family]

    return get


def answers(model, params, settings, prompts, *, eos):
    reader = Reader.of(model, None, eos=eos, start=CASES.START)
    settings = Settings(max_new_tokens=CASES.LIMIT, **settings)
    nothing = [()] * len(prompts)
    found = generate(reader, params, prompts, settings, prefixes=nothing, seed=0, rows=len(prompts))
    return [list(answer.ids) for answer in found]


@pytest.mark.parametrize("name", CASES.SETTINGS)
@pytest.mark.parametrize("family", KINDS)
def test_equals_transformers_token_for_token(family, name, made):
    """All 50 prompts in one padded batch here, those of one length at a time there."""
    data = np.load(PARITY / "generate.npz")
    eos = int(data[f"{family}/eos"])
    found = answers(*made(family), CASES.SETTINGS[name], CASES.prompts(), eos=eos)
    theirs = [row[row >= 0].tolist() for row in data[f"{family}/{name}"]]
    assert found == theirs


def test_the_goldens_have_answers_of_many_lengths():
    data = np.load(PARITY / "generate.npz")
    for family in KINDS:
        every = np.concatenate([data[f"{family}/{name}"] for name in CASES.SETTINGS])
        assert len(set((every >= 0).sum(axis=1).tolist())) > 5


@pytest.mark.parametrize("family", KINDS)
def test_equals_transformers_as_installed(family, made, monkeypatch):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("transformers", reason="needs the parity extra: transformers")
    monkeypatch.syspath_prepend(str(PARITY))
    make = load(PARITY / "make_generate.py")
    prompts, theirs = CASES.prompts(10), make.build(family)
    eos = int(np.load(PARITY / "generate.npz")[f"{family}/eos"])
    for name in ("greedy", "beams_early"):
        settings = CASES.SETTINGS[name]
        expected = make.answers(theirs, prompts, settings, eos)
        assert answers(*made(family), settings, prompts, eos=eos) == expected


def test_masks_are_filled_as_transformers_does():
    """The five likeliest tokens at every position, from the stored logits of a BertForMaskedLM."""
    config, data = encoders.CASES.CONFIGS["bert_masked"], np.load(PARITY / "bert_masked.npz")
    start = "shape/"
    names = [name.removeprefix(start) for name in data.files if name.startswith(start)]
    tensors = {name: encoders.CASES.tensor(name, tuple(data[start + name])) for name in names}
    model = convert_bert.model_of(config)
    params = jax.tree.map(jax.numpy.asarray, encoders.read(convert_bert, model, tensors))
    batch = {k.removeprefix("input/"): data[k] for k in data.files if k.startswith("input/")}
    (logits,) = [data[name] for name in data.files if name.endswith("logits")]
    length, step = batch["tokens"].shape[1], 5  # every fifth position is stored
    slots = np.broadcast_to(np.arange(0, length, step, dtype=np.int32), logits.shape[:2])
    shares, ids = best(model, 5, params, batch, slots)
    real = batch["segments"][:, ::step] > 0
    expected = np.argsort(-logits, axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(np.asarray(ids)[real], expected[real])
    assert real.sum() >= 5 and np.all(np.diff(np.asarray(shares)[real], axis=-1) <= 0)

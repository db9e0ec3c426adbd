"""DistilBERT and TinyBERT: equal to the published models; their losses as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.convert import bert as teachers
from flaxlm.convert import distilbert as converter
from flaxlm.convert import tinybert as narrow
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Vocabulary
from flaxlm.errors import ConfigError
from flaxlm.models import bert, distilbert, tinybert
from flaxlm.objectives.distillation import Distillation, LayerDistillation
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.step import Applied
from tests.descendants import CASES, check, forward, golden, init, load, parameters, read

VOCAB = 500
TEACHER = bert.Size(4, 48, 96, 4, vocab=VOCAB, length=64, dropout=0.3, attention_dropout=0.3)
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


@pytest.mark.parametrize("case", CASES.DISTILBERT)
def test_distilbert_equals_the_published_model(case):
    model = distilbert.Model(distilbert.Size(**CASES.DISTILBERT[case], **CASES.DROPOUT))
    assert model.activation is bert.gelu_erf
    tensors, expected = golden("distilbert", case, converter.ALIASES)
    params = read(converter, model, tensors)
    batch = CASES.inputs(CASES.DISTILBERT[case], seed=ord(case))
    check(forward(model, params, batch), expected, batch)


@pytest.mark.parametrize("case", CASES.TINYBERT)
def test_tinybert_equals_the_published_model(case):
    numbers = CASES.TINYBERT[case] | CASES.DROPOUT
    model = tinybert.Model(tinybert.Size(**numbers, teacher_width=17))
    assert model.activation is bert.gelu_erf
    tensors, expected = golden("tinybert", case, TIED)
    inner = bert.Model(bert.Size(**numbers), activation=bert.gelu_erf)
    params = read(teachers, inner, tensors)
    batch = CASES.inputs(CASES.TINYBERT[case], seed=ord(case))
    fresh, _ = init(model, batch)
    check(forward(model, params | {"fit": fresh["fit"]}, batch), expected, batch)
    part, taken = narrow.parts(model, params | {"fit": fresh["fit"]})["encoder"]
    assert (part.size, part.activation) == (inner.size, inner.activation) and "fit" not in taken


@pytest.mark.parametrize("name", ["distilbert", "tinybert"])
def test_equals_transformers_as_installed(name):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("transformers", reason="needs the parity extra: transformers")
    make = load("make_electra")
    numbers = dict(depth=2, width=15, mlp=31, heads=3, vocab=97, length=23)
    batch = CASES.inputs(numbers, seed=7)
    theirs = getattr(make, name)(numbers)
    tensors = {k: v.numpy() for k, v in theirs.state_dict().items()}
    if name == "distilbert":
        model = distilbert.Model(distilbert.Size(**numbers, **CASES.DROPOUT))
        config = theirs.config.to_dict() | {"architectures": ["DistilBertForMaskedLM"]}
        assert converter.model_of(config).size == distilbert.Size(**numbers)
        params = read(converter, model, tensors)
    else:
        model = bert.Model(bert.Size(**numbers, **CASES.DROPOUT), activation=bert.gelu_erf)
        params = read(teachers, model, tensors)
    expected = make.run(theirs, batch, types=name == "tinybert")
    check(forward(model, params, batch), expected, batch, every=1)


@pytest.mark.parametrize("family", [distilbert, tinybert])
def test_parameters_are_the_published_number(family):
    for name, count in family.PARAMETERS.items():
        size = family.SIZES[name]
        assert parameters(family.Model(size), size.vocab) == count


def batch_of(masked, rows=5, short=20):
    ids = np.random.default_rng(0).integers(7, VOCAB, (rows, masked.window(32))).astype(np.int32)
    made = Rows.of(ids)
    made.segments[1, short:] = 0
    made.tokens[1, short:] = 0
    vocab = Vocabulary(size=VOCAB, sentinels=0).blank()
    return masked.prepare(made, RowRandom(0, made.index), vocab)


def teach(student, objective, *, teacher=TEACHER):
    """(apply with a frozen teacher, batch, the teacher's parameters)."""
    batch = batch_of(objective)
    other = bert.Model(teacher)
    fixed = init(other, batch)[0]
    apply = Applied(student, init(student, batch)[0], {"teacher": Applied(other, fixed)})
    return apply, batch, fixed


def total(objective, out, batch):
    return {
        name: float((term.values(out, batch) * batch[term.weights]).sum())
        / float(batch[term.weights].sum())
        for name, term in objective.terms.items()
    }


def test_distilberts_three_losses():
    student = distilbert.Model(
        distilbert.Size(2, 48, 96, 4, vocab=VOCAB, dropout=0.0, attention_dropout=0.0)
    )
    objective = Distillation(masked=MaskedLM(slots=8))
    apply, batch, fixed = teach(student, objective)
    out = objective.forward(apply, batch, None)
    mine = forward(student, apply.params, batch)
    other = forward(bert.Model(TEACHER), fixed, batch)
    real = batch["segments"] > 0

    def log_softmax(x):
        x = x[real][:, :VOCAB].astype(np.float64)
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    log_p, log_q = log_softmax(mine["logits"] / 2), log_softmax(other["logits"] / 2)
    soft = (np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean() * 4
    a, b = mine["hidden"][real], other["hidden"][real]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    hard = log_softmax(mine["logits"])
    used = batch["slot_weights"] > 0
    place = np.full(real.shape, -1)
    place[real] = np.arange(real.sum())
    rows = np.nonzero(used)[0]
    nll = -hard[place[rows, batch["slots"][used]], batch["slot_targets"][used]].mean()
    found = total(objective, out, batch)
    np.testing.assert_allclose(found["soft"], soft, rtol=1e-4)
    np.testing.assert_allclose(found["mlm"], nll, rtol=1e-5)
    np.testing.assert_allclose(found["cosine"], (1 - cosine).mean(), rtol=1e-4)
    assert {name: term.scale for name, term in objective.terms.items()} == {
        "soft": 5.0,
        "mlm": 2.0,
        "cosine": 1.0,
    }


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    student = bert.Model(TEACHER)
    objective = Distillation(masked=MaskedLM(slots=8))
    batch = batch_of(objective)
    params = init(student, batch)[0]
    apply = Applied(student, params, {"teacher": Applied(student, params)})
    found = total(objective, objective.forward(apply, batch, None), batch)
    assert abs(found["soft"]) < 1e-5 and abs(found["cosine"]) < 1e-5
    # In training the student drops out and the teacher does not.
    assert total(objective, objective.forward(apply, batch, jax.random.key(0)), batch)["soft"] > 0


def test_the_teacher_gets_no_gradient():
    student = tinybert.Model(tinybert.SIZES["tiny"])
    for objective in (
        LayerDistillation(masked=MaskedLM(slots=8)),
        Distillation(masked=MaskedLM(slots=8), cosine=0.0),
    ):
        apply, batch, fixed = teach(student, objective)

        def loss(fixed, objective=objective, apply=apply, batch=batch):
            teacher = Applied(bert.Model(TEACHER), fixed)
            out = objective.forward(
                Applied(student, apply.params, {"teacher": teacher}), batch, None
            )
            terms = objective.terms.values()
            return sum((t.values(out, batch) * batch[t.weights]).sum() for t in terms)

        grads = jax.jit(jax.grad(loss))(fixed)
        assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(grads))


def test_tinyberts_layer_losses():
    """By the published formulas in numpy: a student of 2 layers under a teacher of 4."""
    size = tinybert.Size(
        2, 24, 48, 4, vocab=VOCAB, dropout=0.0, attention_dropout=0.0, teacher_width=48
    )
    student = tinybert.Model(size)
    objective = LayerDistillation(masked=MaskedLM(slots=8))
    apply, batch, _ = teach(student, objective)
    out = {k: np.asarray(v) for k, v in apply(batch, rng=None, layers=True).items() if k[0] in "le"
           and k != "logits"}  # fmt: skip
    other = apply.frozen["teacher"](batch, rng=None, layers=True)
    real = batch["segments"] > 0
    mask = np.where(real, 0.0, -10_000.0)[:, None, None, :]
    attention = 0.0
    for i, j in ((0, 1), (1, 3)):  # i k + k - 1
        mine = out["layers/attention/scores"][i] + mask
        theirs = np.asarray(other["layers/attention/scores"][j]) + mask
        mine, theirs = np.where(mine <= -1e2, 0, mine), np.where(theirs <= -1e2, 0, theirs)
        square = ((mine - theirs) ** 2).transpose(0, 2, 1, 3)[real]  # rows that are no padding
        attention += square.mean()
    fit = apply.params["fit"]
    states = [out["embedded"], *out["layers/hidden"]]
    theirs = [np.asarray(other["embedded"]), *np.asarray(other["layers/hidden"])]
    hidden = 0.0
    for i in range(3):
        wide = states[i] @ np.asarray(fit["kernel"]) + np.asarray(fit["kernel_bias"])
        hidden += ((wide - theirs[2 * i]) ** 2)[real].mean()
    found = total(objective, objective.forward(apply, batch, None), batch)
    np.testing.assert_allclose(found["attention"], attention, rtol=1e-4)
    np.testing.assert_allclose(found["hidden"], hidden, rtol=1e-4)


def test_tinyberts_prediction_loss():
    """The mean over rows and classes of the soft cross-entropy."""

    class Head:
        def __init__(self, logits, frozen=None):
            self.logits, self.frozen = logits, frozen

        def __call__(self, batch, *, rng, method=None, layers=False):
            return {"class_logits": jnp.asarray(self.logits)}

    mine, other = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    objective = LayerDistillation(attention=0.0, hidden=0.0, prediction=1.0)
    batch = {"label_weights": np.array([1, 1, 1, 1, 0, 0], np.float32)}
    out = objective.forward(Head(mine, {"teacher": Head(other)}), batch, None)
    log_p = mine - np.log(np.exp(mine).sum(1, keepdims=True))
    q = np.exp(other) / np.exp(other).sum(1, keepdims=True)
    assert list(objective.terms) == ["prediction"]
    np.testing.assert_allclose(
        total(objective, out, batch)["prediction"], -(q * log_p)[:4].mean(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("student", "objective", "message"),
    [
        (tinybert.Size(3, 24, 48, 4, vocab=VOCAB, teacher_width=48), {}, "3 layers .* of 4"),
        (tinybert.Size(2, 24, 48, 3, vocab=VOCAB, teacher_width=48), {}, "3 heads"),
    ],
)
def test_what_cannot_be_matched_is_refused(student, objective, message):
    objective = LayerDistillation(masked=MaskedLM(slots=8), **objective)
    apply, batch, _ = teach(tinybert.Model(student), objective)
    with pytest.raises(ConfigError, match=message):
        objective.forward(apply, batch, None)


def test_widths_that_differ_have_no_cosine():
    objective = Distillation(masked=MaskedLM(slots=8))
    narrow_size = distilbert.Size(2, 24, 48, 4, vocab=VOCAB)
    apply, batch, _ = teach(distilbert.Model(narrow_size), objective)
    with pytest.raises(ConfigError, match=r"widths 24 .* 48"):
        objective.forward(apply, batch, None)


def test_senseless_numbers_are_refused():
    for make in (
        lambda: Distillation(temperature=0.0),
        lambda: LayerDistillation(temperature=-1.0),
        lambda: LayerDistillation(attention=0.0, hidden=0.0),
    ):
        with pytest.raises(ConfigError):
            make()

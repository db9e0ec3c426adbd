"""Tasks as text in, text out: literal rows, answers read back, learned from end to end."""

import dataclasses
import json

import numpy as np
import pytest

from flaxlm import evaluate
from flaxlm.batch import check_features
from flaxlm.data.encoded import ExampleRows
from flaxlm.data.spec import Vocabulary
from flaxlm.errors import ConfigError
from flaxlm.experiment import load
from flaxlm.models import t5
from flaxlm.nn.compute import Compute
from flaxlm.objectives.templates import Template
from flaxlm.objectives.text_to_text import TextToText, said
from flaxlm.objectives.texts import Texts
from flaxlm.optim import AdamW, Constant
from flaxlm.tasks.base import Classes, Tags
from flaxlm.train import train
from tests import runs, tasks, vocabs

FORM = Classes(("no", "yes"))
TEMPLATE = Template("is {text} a list?", choices=("a value", "return"))
EXAMPLES = [
    {"id": "0", "text": "this", "pair": None, "label": 1},
    {"id": "1", "text": "the value of the function " * 3, "pair": None, "label": None},
    {"id": "2", "text": "", "pair": None, "label": 0},
]


@pytest.fixture(scope="module")
def vocab():
    return vocabs.made("unigram", sentinels=0)


def rows(objective, vocab, length=12):
    encoded = objective.encode(EXAMPLES, FORM, vocab, length)
    place = np.array([0, 1, 2, -1])
    found = objective.prepare(ExampleRows(encoded, place, index=place, pad=0), None, vocab)
    check_features(found, vocab_size=vocab.size)
    return encoded, found


def test_rows_are_an_encoder_decoders(vocab):
    objective = TextToText(template=TEMPLATE, answer=4)
    _, found = rows(objective, vocab)
    text, ids = vocab.encode("is this a list?").tolist(), vocab.encode("return").tolist()
    assert found["tokens"][0].tolist() == [*text, vocab.eos, *[0] * (11 - len(text))]
    long = vocab.encode(f"is {EXAMPLES[1]['text']} a list?").tolist()
    assert found["tokens"][1].tolist() == [*long[:11], vocab.eos]
    wanted = [*ids[:3], vocab.eos]
    wanted += [0] * (4 - len(wanted))
    assert found["targets"][0].tolist() == wanted
    assert found["decoder_tokens"][0].tolist() == [vocab.pad, *wanted[:-1]]
    used = [int(token > 0) for token in wanted]
    assert found["weights"][0].tolist() == found["decoder_segments"][0].tolist() == used
    assert found["decoder_positions"][0].tolist() == [at * use for at, use in enumerate(used)]
    assert found["weights"][1].sum() == found["weights"][3].sum() == 0
    assert found["text_weights"].sum() == found["weights"].sum() - 2  # but the ends
    shown = objective.show(found, vocab)[0]
    assert (shown.input, shown.target) == ("is this a list?", "return")


def test_answers_are_read_from_what_is_said(vocab):
    objective = TextToText(template=TEMPLATE, answer=8)
    encoded, _ = rows(objective, vocab, 24)

    def ids(text):
        made = [*vocab.encode(text).tolist(), vocab.eos, 9, vocab.size + 3]
        return [*made, *[9] * (8 - len(made))][:8]

    answers = {"said": np.array([ids("a value"), ids("return"), ids("of")])}
    assert objective.predictions(answers, encoded, EXAMPLES, FORM) == [0, 1, 1]
    assert said(np.array([vocab.size + 1]), vocab) == vocab.decode([vocab.unk])


def test_barts_rows_begin_otherwise(vocab):
    objective = TextToText(
        template=TEMPLATE, answer=8, texts=Texts("bos A eos", "bos A eos eos B eos", decoder="eos")
    )
    _, found = rows(objective, vocab, 24)
    assert found["targets"][0, 0] == found["tokens"][0, 0] == vocab.bos
    assert found["decoder_tokens"][0, :2].tolist() == [vocab.eos, vocab.bos]


def test_what_is_refused(vocab):
    objective = TextToText(template=TEMPLATE, answer=8)
    with pytest.raises(ConfigError, match="of the form Tags, which has no text"):
        objective.check(Tags(("O",)), name="a/b")
    with pytest.raises(ConfigError, match=r"answer=8 is above data.length=4"):
        objective.window(4)
    with pytest.raises(ConfigError, match="at least 2"):
        TextToText(template=TEMPLATE, answer=1)
    with pytest.raises(ConfigError, match="decoder is empty"):
        TextToText(template=TEMPLATE, texts=Texts("A eos", "A B eos"))


def test_it_learns_and_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLAXLM_CACHE", str(tmp_path / "cache"))
    uri = tasks.polarity_files(tmp_path / "files")
    loaded = load(str(runs.ROOT / "tests" / "experiments" / "tiny_polarity.py"))
    old = loaded.experiment
    experiment = dataclasses.replace(
        old,
        model=t5.Model(
            t5.Size(1, 16, 32, 2, head_dim=8, vocab=384, dropout=0.0), Compute(scan=False)
        ),
        objective=TextToText(
            template=Template("{text}", choices=("a", "the")), answer=4
        ),
        data=dataclasses.replace(
            old.data,
            sources=(dataclasses.replace(old.data.sources[0], uri=uri),),
            held_out=(dataclasses.replace(old.data.held_out[0], uri=uri),),
            vocabulary=Vocabulary(size=300, sentinels=0),
            length=32,
        ),
        optimizer=AdamW(Constant(1e-2)),
        run=dataclasses.replace(
            old.run, directory=str(tmp_path / "run"), steps=80, eval_every=80, save_every=80
        ),
    )  # fmt: skip
    assert train(dataclasses.replace(loaded, experiment=experiment)) == 0
    (line,) = runs.metrics(tmp_path / "run", "eval")
    assert line["accuracy"] > 90 and line["text_nll"] < 0.4
    task = uri.removeprefix("task:")
    arguments = ["--run", str(tmp_path / "run"), "--task", task, "--split", "train[80%:]"]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["accuracy"] == pytest.approx(line["accuracy"])

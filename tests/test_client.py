"""A client from outside: a trained run, exported, is loaded by transformers and fills masks there
exactly as it does here.
"""

import numpy as np
import pytest

import flaxlm
from flaxlm import train
from flaxlm.convert import __main__ as convert

TEXTS = [
    "the [MASK] of the function is returned .",
    "raises an exception if the [MASK] is not [MASK] , or the file does not exist .",
]


@pytest.mark.slow
def test_a_masked_model_fills_masks_in_transformers(data_cache, tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="needs the parity extra: torch")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    run, folder = tmp_path / "run", tmp_path / "exported"
    arguments = ["--run.steps=30", "--run.eval_batches=1", f"--run.directory={run}"]
    assert train.main(["--experiment", "tiny_bert", *arguments]) == 0
    assert not convert.main(["--run", str(run), "--to-hf", str(folder)])
    assert "equal bit for bit" in capsys.readouterr().out

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ours = flaxlm.load(run)
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    batch = ours.batch(TEXTS)
    ids, real = batch["tokens"], batch["segments"]
    np.testing.assert_array_equal(ids, inputs["input_ids"].numpy())
    np.testing.assert_array_equal(real, inputs["attention_mask"].numpy())
    found = ours(batch)["logits"]
    masks = ids == ours.vocab.mask
    assert masks.sum() == 3
    np.testing.assert_allclose(found[real > 0], expected[real > 0], atol=1e-4)
    best = found[masks].argmax(axis=1)
    np.testing.assert_array_equal(best, expected[masks].argmax(axis=1))
    for at in best:
        assert ours.vocab.piece(at) == tokenizer.convert_ids_to_tokens(int(at))

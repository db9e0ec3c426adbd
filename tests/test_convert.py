"""Into Hugging Face folders and out of them, every family there is, through files."""

import collections
import dataclasses
import importlib
import inspect
import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from flaxlm import named, safetensors
from flaxlm.convert import __main__ as convert
from flaxlm.convert import table
from flaxlm.convert.check import check_same, random_batch
from flaxlm.convert.families import families, family_of_model, model_of, parts_of
from flaxlm.convert.tokenizer import Template, sentinels_of, write_tokenizer
from flaxlm.data import english
from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab import load_vocab, train_vocab
from flaxlm.errors import ConfigError, DataError, MissingInput, StorageError
from flaxlm.lm import load, outputs
from flaxlm.models import t5
from flaxlm.weights import read_weights, write_run

READERS = {name: family for name, family in families().items() if family.MODEL_TYPES}
SIZE = t5.Size(2, 20, 28, 3, head_dim=5, vocab=450, decoder_depth=1)


def cases() -> dict[str, tuple[nn.Module, str]]:
    """{name: (model, part)} of all that the converters write, at the size "tiny"."""
    found = {}
    for name in families():
        models = importlib.import_module(f"flaxlm.models.{name}")
        for kind, made in inspect.getmembers(models, inspect.isclass):
            if not issubclass(made, nn.Module) or made.__module__ != models.__name__:
                continue
            fields = [f for f in dataclasses.fields(made) if f.name not in ("parent", "name")]
            needed = [f.name for f in fields if f.default is dataclasses.MISSING]
            if kind.startswith("_") or needed != ["size"]:
                continue
            model = made(models.SIZES["tiny"])
            try:
                for part, (module, _) in parts_of(model, collections.defaultdict(dict)).items():
                    family_of_model(module).table(module)
                    family_of_model(module).config_of(module)
                    found[f"{name}.{kind}" + (f".{part}" if part else "")] = model, part
            except (ConfigError, AttributeError):  # not one that transformers has
                continue
    return found


CASES = cases()


def random_params(model, *, seed: int = 0):
    """Parameters without zeros: biases and norms would hide a mistake."""
    batch = random_batch(model, seed=seed)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False)["params"])
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32) + np.float32(0.05)

    return jax.tree.map(draw, named.unbox(params))


@pytest.fixture(scope="session")
def vocabs():
    """{kind: a small vocabulary}, trained once."""
    made = {}

    def get(kind):
        if kind not in made:
            sentinels = 5 if kind in ("unigram", "bpe") else 0
            spec = Vocabulary(size=440, kind=kind, sentinels=sentinels)
            made[kind] = train_vocab(english.documents()[:30], spec)
        return made[kind]

    return get


def vocab_for(vocabs, module):
    """The first kind of vocabulary that has all symbols of a module's tokenizer, and its padding
    where transformers counts positions from that.
    """
    family = family_of_model(module)
    words = {word for count in (1, 2) for word, _ in family.TOKENIZER.words(count)} - {"A", "B"}
    for kind in ("wordpiece", "bytes", "unigram"):
        vocab = vocabs(kind)
        pad = family.config_of(module).get("pad_token_id", vocab.pad)
        if vocab.pad == pad and all(getattr(vocab, word) is not None for word in words):
            return vocab
    raise AssertionError(f"no vocabulary for {module}")


def test_every_converter_keeps_the_protocol():
    assert {"t5"} <= set(READERS)
    for family in READERS.values():
        for name in ("model_of", "config_of", "table"):
            assert callable(getattr(family, name)), family.__name__
        assert isinstance(family.ALIASES, dict) and isinstance(family.PREFIX, str)
        assert isinstance(family.TOKENIZER, Template)
        assert all(re.compile(pattern) for pattern in family.IGNORED)
    kinds = [kind for family in READERS.values() for kind in family.MODEL_TYPES]
    assert len(kinds) == len(set(kinds))
    assert {name.partition(".")[0] for name in CASES} >= set(READERS)


def to_hf_and_back(model, part, vocab, tmp_path, capsys):
    """A run of `model`, the folder made of it, and the run made of that."""
    run, folder, again = (tmp_path / name for name in ("run", "hf", "again"))
    run.mkdir()
    write_run(run, model, random_params(model), vocab)
    argv = ["--run", str(run), "--to-hf", str(folder), *(["--part", part] if part else [])]
    assert convert.main(argv) == 0, capsys.readouterr()
    assert convert.main(["--from-hf", str(folder), "--to", str(again)]) == 0, capsys.readouterr()
    return run, folder, again


@pytest.mark.parametrize("case", CASES)
def test_round_trip_of_every_family(case, tmp_path, vocabs, capsys):
    model, part = CASES[case]
    module, _ = parts_of(model, random_params(model))[part]
    family, vocab = family_of_model(module), vocab_for(vocabs, module)
    run, folder, again = to_hf_and_back(model, part, vocab, tmp_path, capsys)
    said = capsys.readouterr().out
    assert said.count("largest difference of any output on a random batch: 0\n") == 2
    assert "tokenizer.json: our ids on 400 of 400 lines" in said
    assert not list(tmp_path.glob("*.partial"))
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] in family.MODEL_TYPES and config["architectures"]
    before, after = read_weights(run), read_weights(again)
    _, params = parts_of(before.model, before.params)[part]
    entries = family.table(after.model)
    check_same(table.write(entries, params), table.write(entries, after.params), where=case)
    assert after.vocab.model == vocab.model and after.vocab.size == vocab.size
    # The second time round nothing changes, not even the padding.
    last = tmp_path / "last"
    assert convert.main(["--run", str(again), "--to-hf", str(last)]) == 0
    assert (last / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (last / "config.json").read_bytes() == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_is_written(case, tmp_path, vocabs, capsys):
    torch = pytest.importorskip("torch", reason="needs the parity extra: torch")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    model, part = CASES[case]
    module, _ = parts_of(model, random_params(model))[part]
    template, vocab = family_of_model(module).TOKENIZER, vocab_for(vocabs, module)
    _, folder, again = to_hf_and_back(model, part, vocab, tmp_path, capsys)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    theirs, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    lm = load(again)
    texts = ["The first line of two.", "A second, rather longer than the first one was."]
    pairs = ["What follows.", "And more."]
    batch = lm.batch(texts, pairs, targets=["one two three", "four"] if template.start else None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    encoded = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    real = batch["segments"] > 0
    np.testing.assert_array_equal(encoded["input_ids"].numpy()[real], batch["tokens"][real])
    np.testing.assert_array_equal(encoded["attention_mask"].numpy(), batch["segments"])
    if "token_type_ids" in encoded:
        np.testing.assert_array_equal(encoded["token_type_ids"].numpy()[real], batch["types"][real])
    if template.start:
        encoded["decoder_input_ids"] = torch.from_numpy(batch["decoder_tokens"]).long()
        encoded["decoder_attention_mask"] = torch.from_numpy(batch["decoder_segments"]).long()
        real = batch["decoder_segments"] > 0
    with torch.no_grad():
        expected = theirs.eval()(**encoded)
    found = lm(batch)
    pairs = {
        "logits": ("logits", "prediction_logits"),
        "replaced": ("logits",),
        "hidden": ("last_hidden_state",),
        "pooled": ("pooler_output",),
        "pair_logits": ("seq_relationship_logits", "sop_logits"),
    }
    compared = 0
    for ours, names in pairs.items():
        attribute = next((n for n in names if getattr(expected, n, None) is not None), None)
        if attribute is None or ours not in found:
            continue
        wanted = getattr(expected, attribute).numpy()
        if wanted.shape != found[ours].shape:
            continue
        where = real if wanted.ndim > 2 or ours == "replaced" else ...
        np.testing.assert_allclose(found[ours][where], wanted[where], atol=1e-4, rtol=0)
        compared += 1
    assert compared


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece", "bytes"])
def test_tokenizer_files_are_the_vocabulary(kind, tmp_path, vocabs):
    from tokenizers import Tokenizer

    vocab, template = vocabs(kind), Template(single="A", pair="A B:1")
    write_tokenizer(tmp_path, vocab, template, longest=64)
    again = load_vocab(tmp_path, sentinels=sentinels_of(tmp_path, template))
    assert (again.model, again.size, again.kind) == (vocab.model, vocab.size, vocab.kind)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    lines = [line for text in english.documents()[30:60] for line in text.splitlines()][:300]
    lines += [
        "", " ", "  two  spaces ", "ＦＵＬＬ width, ﬁ ligature", "한국어 문장입니다.", "\tt\nl",
        "naïve café — “quotes”…", "😀 中文字", "x" * 300, "a <mask> b [MASK] c</s><extra_id_3> d",
    ]  # fmt: skip
    for line in lines:
        assert theirs.encode(line).ids == vocab.encode(line, specials=True).tolist(), line


def test_transformers_tokenizers_agree(tmp_path, vocabs):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    for kind in ("unigram", "bpe", "wordpiece", "bytes"):
        vocab = vocabs(kind)
        template = Template(single="A eos" if vocab.eos is not None else "cls A sep", pair="A B:1")
        folder = tmp_path / kind
        folder.mkdir()
        write_tokenizer(folder, vocab, template, longest=64)
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.model_max_length == 64
        for name in ("pad", "eos", "unk", "bos", "cls", "sep", "mask"):
            if getattr(vocab, name) is not None:
                assert getattr(theirs, f"{name}_token_id") == getattr(vocab, name), (kind, name)
        for line in ("One line,  two spaces.", "Ünïcode 한국어"):
            expected = template.around(vocab, vocab.encode(line))[0].tolist()
            assert theirs(line)["input_ids"] == expected, kind


def hf_folder(path, model=None, vocab=None):
    """A Hugging Face folder of a T5; returns its parameters."""
    from flaxlm.convert.folder import write_folder

    model = model or t5.Model(SIZE)
    params = random_params(model)
    path.mkdir(exist_ok=True)
    write_folder(path, model, params, vocab)
    return params


def refusal(capsys, *argv: str) -> tuple[int, str]:
    code = convert.main([str(word) for word in argv])
    said = capsys.readouterr().err
    assert said.startswith("flaxlm: ") and said.count("\n") == 1, said
    return code, said


def test_an_unknown_family_names_the_known(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code, said = refusal(capsys, "--from-hf", tmp_path, "--to", tmp_path / "run")
    assert code == 78 and "model_type 'llama' is not known: " in said and "t5" in said
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "model_type None is not known"),
        ('{"model_type": ["t5"]}', "model_type"),
        ('{"model_type": "t5", "d_model": "x"}', "wrong type"),
        ('{"model_type": "t5", "d_model": 0}', "model.size.width=0"),
        ('{"model_type": "t5", "feed_forward_proj": "gated-silu"}', "feed_forward_proj"),
        ('{"model_type": "t5", "feed_forward_proj": "gated-gelu"}', "neither T5 v1.0 nor v1.1"),
    ],
)
def test_a_config_is_not_believed(tmp_path, capsys, text, message):
    (tmp_path / "config.json").write_text(text)
    _, said = refusal(capsys, "--from-hf", tmp_path, "--to", tmp_path / "run")
    assert message in said and "config.json" in said


def test_pickled_weights_are_not_read(tmp_path, capsys):
    hf_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    code, said = refusal(capsys, "--from-hf", tmp_path, "--to", tmp_path / "run")
    assert code == 77 and "can run code" in said and "safe_serialization=True" in said
    assert "T5ForConditionalGeneration.from_pretrained" in said
    (tmp_path / "pytorch_model.bin").unlink()
    code, said = refusal(capsys, "--from-hf", tmp_path, "--to", tmp_path / "run")
    assert code == 66 and "no model.safetensors" in said


def test_tensors_that_do_not_fit_are_named_with_both_shapes(tmp_path, capsys):
    hf_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = {name: array.copy() for name, array in safetensors.read(path).items()}
    name = "decoder.block.0.layer.1.EncDecAttention.k.weight"

    def said(tensors):
        safetensors.write(path, tensors)
        return refusal(capsys, "--from-hf", tmp_path, "--to", tmp_path / "run")

    code, text = said({key: array for key, array in whole.items() if key != name})
    assert code == 66 and f"'{name}' [15, 20] is missing" in text
    assert "decoder/layers/cross_attention/key [20, 15]" in text
    code, text = said(whole | {name: whole[name].T})
    assert code == 65 and f"'{name}' has shape [20, 15]" in text and "must have [15, 20]" in text
    code, text = said(whole | {"pooler.weight": whole[name]})
    assert code == 65 and "'pooler.weight' [15, 20]" in text and "no place" in text
    code, text = said(whole | {"encoder.embed_tokens.weight": whole["shared.weight"] + 1})
    assert code == 65 and "must be a copy of 'shared.weight'" in text
    safetensors.write(path, whole | {"encoder.embed_tokens.weight": whole["shared.weight"]})
    assert convert.main(["--from-hf", str(tmp_path), "--to", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_become_fp32(tmp_path, dtype):
    import ml_dtypes

    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}[dtype]
    hf_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    cast = {name: array.astype(kind) for name, array in safetensors.read(path).items()}
    safetensors.write(path, cast)
    assert convert.main(["--from-hf", str(tmp_path), "--to", str(tmp_path / "run")]) == 0
    params = read_weights(tmp_path / "run").params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        params["embed"]["table"][: SIZE.vocab], cast["shared.weight"].astype(np.float32)
    )


def test_a_target_that_holds_something_is_left_alone(tmp_path, capsys):
    hf_folder(tmp_path / "hf")
    target = tmp_path / "run"
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    code, said = refusal(capsys, "--from-hf", tmp_path / "hf", "--to", target)
    assert code == 73 and "not empty" in said
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "argv", [[], ["--from-hf", "a"], ["--run", "a", "--to", "b"], ["--run", "a", "--from-hf", "b"]]
)
def test_half_a_command_line_is_refused(argv, capsys):
    code, said = refusal(capsys, *argv)
    assert code == 78 and "--from-hf DIR --to RUN" in said


def test_folders_of_the_other_kind(tmp_path, capsys):
    hf_folder(tmp_path / "hf")
    assert convert.main(["--from-hf", str(tmp_path / "hf"), "--to", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    code, said = refusal(capsys, "--from-hf", tmp_path / "run", "--to", tmp_path / "x")
    assert code == 78 and "is a run directory" in said
    code, said = refusal(capsys, "--from-hf", "google/flan-t5-small", "--to", tmp_path / "x")
    assert code == 66 and "hf download" in said


def test_models_that_transformers_lacks_are_refused(tmp_path, capsys):
    model = t5.LanguageModel(SIZE)
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", model, random_params(model), None)
    code, said = refusal(capsys, "--run", tmp_path / "run", "--to-hf", tmp_path / "hf")
    assert code == 78 and "LanguageModel" in said


def test_a_check_that_fails_leaves_nothing(tmp_path, capsys, monkeypatch):
    hf_folder(tmp_path / "hf")
    original = safetensors.write

    def flip(path, tensors, **more):
        first = next(iter(tensors))
        original(path, {**tensors, first: tensors[first] + 1}, **more)

    monkeypatch.setattr(safetensors, "write", flip)
    code, said = refusal(capsys, "--from-hf", tmp_path / "hf", "--to", tmp_path / "run")
    assert code == StorageError.code and "read back with other values" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_tables_refuse_trees_that_do_not_fit():
    model = t5.Model(SIZE)
    params, entries = random_params(model), families()["t5"].table(model)
    with pytest.raises(MissingInput, match="parameter head/kernel"):
        table.write(entries, {name: part for name, part in params.items() if name != "head"})
    with pytest.raises(DataError, match="'more/kernel'"):
        table.write(entries, params | {"more": {"kernel": np.zeros(1)}})
    with pytest.raises(DataError, match=r"embed/table has shape \[3, 20\], not \[512, 20\]"):
        table.write(entries, params | {"embed": {"table": np.zeros((3, 20), np.float32)}})


def test_parts_of_one_tensor_and_zeros():
    entries = [
        table.Entry("q", "joint", (2, 3), part=(0, 2)),
        table.Entry("k", "joint", (2, 3), part=(1, 2)),
    ]
    joint = np.arange(12, dtype=np.float32).reshape(2, 6)
    params = table.read(entries, {"joint": joint, "b": np.zeros(2)}, zeros=("b",))
    np.testing.assert_array_equal(params["k"], joint[:, 3:])
    np.testing.assert_array_equal(table.write(entries, params)["joint"], joint)
    with pytest.raises(DataError, match="'b' must be 0"):
        table.read(entries, {"joint": joint, "b": np.ones(2)}, zeros=("b",))


def test_the_config_of_transformers_5_is_read():
    config = families()["t5"].config_of(t5.Model(SIZE))
    theirs = config | {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert model_of(theirs, where="here") == t5.Model(SIZE)


def test_outputs_are_those_of_the_model():
    model = t5.Model(SIZE)
    batch, params = random_batch(model, seed=3), random_params(model)
    found = jax.jit(lambda p, b: outputs(model, p, b))(params, batch)
    assert found["logits"].shape == (*batch["decoder_tokens"].shape, SIZE.vocab)

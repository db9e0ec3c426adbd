"""Readers and result files of tasks: literal files in, literal examples out, and back again."""

import csv
import gzip
import json
import logging
import re
from pathlib import Path

import pytest

from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.tasks import klue_files
from flaxlm.tasks.base import Arcs, Choices, Classes, Score, Spans, States, Tags, find, names
from flaxlm.tasks.baselines import majority
from flaxlm.tasks.klue_labels import ARCS, NER, SLOTS
from tests.vocabs import sample_data

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "The cat sat. 서울은 수도다.",
                    "qas": [
                        {
                            "id": "q1",
                            "guid": "q1",
                            "question": "Who?",
                            "answers": [{"text": "cat", "answer_start": 4}],
                        },
                        {
                            "id": "q2",
                            "guid": "q2",
                            "question": "Where?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "서울", "answer_start": 13}],
                        },
                    ],
                }
            ]
        }
    ]
}
MULTIRC = {
    "idx": 3,
    "passage": {
        "text": "P.",
        "questions": [
            {"idx": 0, "question": "Q?", "answers": [{"idx": 0, "text": "x", "label": 1},
                                                     {"idx": 1, "text": "y", "label": 0}]}
        ],
    },
}  # fmt: skip
WSC = {"idx": 0, "text": "Mark told Pete lies. He lied.", "label": True,
       "target": {"span1_index": 0, "span1_text": "Mark",
                  "span2_index": 4, "span2_text": "He"}}  # fmt: skip
SWAG = (
    "video-id,fold-ind,startphrase,ending0,ending1,ending2,ending3,label\n"
    'v,1,"He, sits. He","a ""b""",c,d,e,2\n'
)
CSQA = {"id": "1", "answerKey": "C", "question": {"stem": "Why?", "choices": [
    {"label": x, "text": f"{x} it"} for x in "ABCDE"]}}  # fmt: skip
NER_TSV = "## 칼럼명 : CHAR\tNE_TAG\n## g1\t<가:PS> #\n가\tB-PS\n \tO\n#\tO\n\n## g2\t나\n나\tO\n"
DP_TSV = (
    "## 칼럼명 : INDEX\tWORD_FORM\tLEMMA\tPOS\tHEAD\tDEPREL\n## g1\t나는 간다.\n"
    "1\t나는\t나 는\tNP+JX\t2\tNP_SBJ\n2\t간다.\t가 ㄴ다 .\tVV+EF+SF\t0\tVP\n\n"
)
RE = {"guid": "r1", "sentence": "〈Something〉는 조지 해리슨이 썼다.", "label": "per:product",
      "subject_entity": {"word": "조지 해리슨", "start_idx": 13, "end_idx": 18},
      "object_entity": {"word": "Something", "start_idx": 1, "end_idx": 9}}  # fmt: skip
WOS = {"guid": "w1", "dialogue": [
    {"role": "user", "text": "숙소요", "state": ["숙소-지역-서울 중앙"]},
    {"role": "sys", "text": "네"},
    {"role": "user", "text": "3-4명",
     "state": ["숙소-지역-서울 중앙", "숙소-예약 명수-3-4"]}]}  # fmt: skip
STS = {"guid": "s1", "sentence1": "가", "sentence2": "나", "labels": {"real-label": 3.5}}

# (task, split, file, its content, the examples)
CASES = [
    ("glue/cola", "train", "CoLA/train.tsv", "gj04\t1\t\tI \"am.\ngj04\t0\t*\tAm I.\n",
     [{"id": "0", "text": 'I "am.', "pair": None, "label": 1},
      {"id": "1", "text": "Am I.", "pair": None, "label": 0}]),
    ("glue/cola", "test", "test.tsv", "index\tsentence\n0\tHi\n",
     [{"id": "0", "text": "Hi", "pair": None, "label": None}]),
    ("glue/sst2", "validation", "dev.tsv.gz", "sentence\tlabel\nfine \t1\n",
     [{"id": "0", "text": "fine ", "pair": None, "label": 1}]),
    ("glue/mrpc", "train", "MRPC/train.tsv",
     "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\ta\tb\r\n",
     [{"id": "0", "text": "a", "pair": "b", "label": 1}]),
    ("glue/stsb", "validation", "STS-B/dev.tsv",
     "index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta\tb\t3.750\n",
     [{"id": "0", "text": "a", "pair": "b", "label": 3.75}]),
    ("glue/mnli", "validation", "MNLI/dev_matched.tsv",
     "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
     [{"id": "0", "text": "a", "pair": "b", "label": 1}]),
    ("glue/mnli_mismatched", "test", "MNLI/test_mismatched.tsv",
     "index\tsentence1\tsentence2\n0\ta\tb\n",
     [{"id": "0", "text": "a", "pair": "b", "label": None}]),
    ("glue/ax", "test", "diagnostic/diagnostic.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n",
     [{"id": "0", "text": "a", "pair": "b", "label": None}]),
    ("superglue/boolq", "train", "BoolQ/train.jsonl",
     '{"question": "q", "passage": "p", "idx": 5, "label": true}\n',
     [{"id": "5", "text": "q", "pair": "p", "label": 1}]),
    ("superglue/copa", "validation", "val.jsonl", '{"premise": "It fell.", "choice1": "a", '
     '"choice2": "b", "question": "cause", "idx": 1, "label": 1}\n',
     [{"id": "1", "text": "It fell. What was the cause of this?", "endings": ["a", "b"],
       "label": 1}]),
    ("superglue/multirc", "train", "train.jsonl", json.dumps(MULTIRC),
     [{"id": "3-0-0", "text": "P.", "pair": "Q? x", "label": 1, "group": "3-0"},
      {"id": "3-0-1", "text": "P.", "pair": "Q? y", "label": 0, "group": "3-0"}]),
    ("superglue/wsc", "train", "WSC/train.jsonl", json.dumps(WSC),
     [{"id": "0", "text": "*Mark* told Pete lies. *He* lied.", "pair": None, "label": 1}]),
    ("superglue/wic", "test", "test.jsonl",
     '{"word": "run", "sentence1": "a", "sentence2": "b", "idx": 2}\n',
     [{"id": "2", "text": "run: a", "pair": "b", "label": None}]),
    ("squad/v2", "validation", "dev-v2.0-part.json.gz", json.dumps(SQUAD, indent=1),
     [{"id": "q1", "question": "Who?", "context": "The cat sat. 서울은 수도다.",
       "answers": [{"text": "cat", "start": 4}], "impossible": False},
      {"id": "q2", "question": "Where?", "context": "The cat sat. 서울은 수도다.",
       "answers": [], "impossible": True}]),
    ("choice/swag", "train", "train.csv", SWAG,
     [{"id": "0", "text": "He, sits. He", "endings": ['a "b"', "c", "d", "e"], "label": 2}]),
    ("choice/commonsenseqa", "train", "train_head9.jsonl", json.dumps(CSQA),
     [{"id": "1", "text": "Why?", "endings": [f"{x} it" for x in "ABCDE"], "label": 2}]),
    ("ner/conll2003", "train", "eng.train",
     "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nUN NNP I-NP B-ORG\nin IN I-PP O\n\n",
     [{"id": "0", "words": ["EU", "UN", "in"], "tags": [3, 3, 0]}]),
    ("ner/wnut17", "train", "wnut17train.conll", "a b\tO\nX\tB-creative-work\n\t\nc\tO\n",
     [{"id": "0", "words": ["a b", "X"], "tags": [0, 3]},
      {"id": "1", "words": ["c"], "tags": [0]}]),
    ("nli/snli", "train", "snli_1.0_train.jsonl", json.dumps(
        {"pairID": "p", "sentence1": "a", "sentence2": "b", "gold_label": "contradiction"}),
     [{"id": "p", "text": "a", "pair": "b", "label": 2}]),
    ("korean/nsmc", "test", "ratings_test.txt", "id\tdocument\tlabel\n1\t\t0\n2\t굿 \t1\n",
     [{"id": "1", "text": "", "pair": None, "label": 0},
      {"id": "2", "text": "굿 ", "pair": None, "label": 1}]),
    ("klue/ner", "validation", "klue-ner-v1.1/klue-ner-v1.1_dev.tsv", NER_TSV,
     [{"id": "g1", "words": ["가", " ", "#"], "tags": [0, 12, 12]},
      {"id": "g2", "words": ["나"], "tags": [12]}]),
    ("klue/dp", "train", "klue-dp-v1_train.tsv", DP_TSV,
     [{"id": "g1", "words": ["나는", "간다."], "lemmas": ["나 는", "가 ㄴ다 ."],
       "pos": ["NP+JX", "VV+EF+SF"], "heads": [2, 0], "relations": [3, 2]}]),
    ("klue/re", "train", "klue-re-v1.1_train.json", json.dumps([RE]),
     [{"id": "r1", "pair": None, "label": 27,
       "text": "〈<obj>Something</obj>〉는 <subj>조지 해리슨</subj>이 썼다."}]),
    ("klue/sts", "train", "klue-sts-v1.1_train.json", json.dumps([STS]),
     [{"id": "s1", "text": "가", "pair": "나", "label": 3.5}]),
    ("klue/ynat", "test", "ynat-v1.1_test.json", '[{"guid": "y", "title": "가"}]',
     [{"id": "y", "text": "가", "pair": None, "label": None}]),
    ("klue/mrc", "train", "klue-mrc-v1.1_train.json", json.dumps(SQUAD),
     [{"id": "q1", "question": "Who?", "context": "The cat sat. 서울은 수도다.",
       "answers": [{"text": "cat", "start": 4}], "impossible": False},
      {"id": "q2", "question": "Where?", "context": "The cat sat. 서울은 수도다.",
       "answers": [], "impossible": True}]),
    ("klue/wos", "train", "wos-v1.1_train.json", json.dumps([WOS]),
     [{"id": "w1-0", "text": "user: 숙소요", "state": {"숙소-지역": "서울 중앙"}},
      {"id": "w1-1", "text": "user: 숙소요\nsys: 네\nuser: 3-4명",
       "state": {"숙소-지역": "서울 중앙", "숙소-예약 명수": "3-4"}}]),
]  # fmt: skip


def _file(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "name, split, file, text, expected", CASES, ids=[f"{c[0]}:{c[1]}" for c in CASES]
)
def test_files_become_examples(name, split, file, text, expected, tmp_path):
    path = _file(tmp_path, file, text)
    task = find(name)
    assert task.name == name
    assert task.read(split, str(tmp_path)) == expected
    assert task.read(split, str(path)) == expected  # the file itself may be named


BAD = [
    ("glue/sst2", "train.tsv", "sentence\tlabel\nfine\t1\nbad\n",
     r"train\.tsv:3: 1 columns, expected 2 \(sentence, label\)"),
    ("glue/sst2", "train.tsv", "sentence\tlabel\nfine\t2\n",
     r"train\.tsv:2: label '2' is none of 0, 1"),
    ("glue/sst2", "train.tsv", "text\tlabel\nfine\t1\n",
     r"train\.tsv:2: no 'sentence'; there are: text, label"),
    ("glue/sst2", "train.tsv", b"sentence\tlabel\nok\t1\ncaf\xe9\t1\n",
     r"train\.tsv:3: byte 4 of the line is not utf-8"),
    ("glue/stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\t5.1\n",
     r"train\.tsv:2: 5\.1 is not from 0 to 5"),
    ("glue/stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n",
     r"train\.tsv:2: nan is not from"),
    ("superglue/rte", "train.jsonl",
     '{"premise": "a", "hypothesis": "b", "idx": 0}\n{"premise": \n',
     r"train\.jsonl:2: not JSON: .* at character"),
    ("superglue/rte", "train.jsonl", "[]\n", r"train\.jsonl:1: a JSON list, expected an object"),
    ("superglue/rte", "train.jsonl", '{"premise": "\\ud800", "hypothesis": "b", "idx": 0}\n',
     r"train\.jsonl:1: half a surrogate pair"),
    ("superglue/copa", "train.jsonl",
     '{"premise": "a", "choice1": "b", "choice2": "c", "question": "why", "idx": 0}',
     r":1: question 'why' is neither cause nor effect"),
    ("squad/v1", "train-v1.1.json", json.dumps(SQUAD), "question q2 is impossible"),
    ("squad/v2", "train-v2.0.json", json.dumps(SQUAD).replace('start": 4', 'start": 5'),
     "question q1: the answer 'cat' is not at 5, where 'at ' is"),
    ("squad/v2", "train-v2.0.json", '{"data": [\n\n{]}', r"train-v2\.0\.json:3: not JSON"),
    ("squad/v2", "train-v2.0.json.gz", None, r"damaged gzip"),
    ("choice/swag", "train.csv", SWAG + "v,1,x\n", r"train\.csv:3: 3 columns, expected 8"),
    ("choice/swag", "train.csv", SWAG.replace('"a ""b"""', '"a'), r"train\.csv:\d: "),
    ("choice/commonsenseqa3", "train_rand_split.jsonl", json.dumps(CSQA),
     ":1: 5 choices, expected 3"),
    ("ner/wnut17", "wnut17train.conll", "a\tO\nb\n", r"conll:2: 1 columns, expected 2: 'b'"),
    ("ner/wnut17", "wnut17train.conll", "a\tB-planet\n", r"conll:1: label 'B-planet' is none of O"),
    ("klue/ner", "klue-ner-v1.1_train.tsv", "가\tO\n", r"tsv:1: no line '## guid<TAB>sentence'"),
    ("klue/dp", "klue-dp-v1.1_train.tsv", DP_TSV.replace("\t2\tNP_SBJ", "\t3\tNP_SBJ"),
     r"tsv:3: head '3' is not from 0 to 2"),
    ("klue/dp", "klue-dp-v1.1_train.tsv", DP_TSV.replace("\n2\t", "\n3\t"),
     r"tsv:4: word '3' where 2 was expected"),
    ("klue/re", "klue-re-v1.1_train.json",
     json.dumps([RE]).replace('"start_idx": 1,', '"start_idx": 2,'),
     "r1: the answer 'Something' is not at 2"),
    ("klue/wos", "wos-v1.1_train.json", json.dumps([WOS]).replace("3-4\"]", "3\", \"x-y-z\"]"),
     "w1: state 'x-y-z' is of no slot"),
    ("klue/sts", "klue-sts-v1.1_train.json", "{}", "a JSON dict, expected an array"),
]  # fmt: skip


@pytest.mark.parametrize("name, file, text, said", BAD, ids=[f"{b[0]}: {b[3]}" for b in BAD])
def test_one_line_says_what_is_wrong_and_where(name, file, text, said, tmp_path):
    path = tmp_path / file
    if text is None:
        path.write_bytes(gzip.compress(b"x" * 1000)[:-10])
    else:
        _file(tmp_path, file, text)
    with pytest.raises(DataError, match=said) as caught:
        find(name).read("train", str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def _spoilt(value):
    """Copies of a JSON value, each with one part gone or another in its place."""
    yield from (None, [], {}, 7, -1, "x", True)
    if isinstance(value, dict):
        for key, part in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in _spoilt(part))
    elif isinstance(value, list):
        for at, part in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in _spoilt(part))


@pytest.mark.parametrize(
    "name, file, value",
    [
        (
            "superglue/boolq",
            "train.jsonl",
            {"question": "q", "passage": "p", "idx": 5, "label": True},
        ),
        ("superglue/multirc", "train.jsonl", MULTIRC),
        ("superglue/wsc", "train.jsonl", WSC),
        ("squad/v2", "train-v2.0.json", SQUAD),
        ("choice/commonsenseqa", "train.jsonl", CSQA),
        ("klue/re", "klue-re-v1.1_train.json", [RE]),
        ("klue/sts", "klue-sts-v1.1_train.json", [STS]),
        ("klue/wos", "wos-v1.1_train.json", [WOS]),
    ],
)
def test_spoilt_json_is_read_or_refused(name, file, value, tmp_path):
    refused = 0
    for spoilt in _spoilt(value):
        _file(tmp_path, file, json.dumps(spoilt))
        try:
            find(name).read("train", str(tmp_path))
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


def test_what_is_left_out_is_counted_and_said(tmp_path, caplog):
    columns = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    _file(tmp_path, "train.tsv", columns + "1\t1\t2\ta\tb\t1\n2\t3\t4\tbroken\n\n")
    pair = {"pairID": "p", "sentence1": "a", "sentence2": "b"}
    rows = [json.dumps({**pair, "gold_label": label}) for label in ("-", "neutral", "-")]
    _file(tmp_path, "snli_1.0_train.jsonl", "\n".join(rows))
    with caplog.at_level(logging.WARNING):
        assert len(find("glue/qqp").read("train", str(tmp_path))) == 1
        assert len(find("nli/snli").read("train", str(tmp_path))) == 1
    assert "train.tsv: 1 rows with too few columns are left out" in caplog.text
    assert "train.tsv: 1 empty lines are left out" in caplog.text
    assert "2 pairs without an agreed label are left out" in caplog.text


def test_names_splits_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="task:glue/sts2: no task has that name; did you mean"):
        find("glue/sts2")
    read = find("sentences/polarity").read
    with pytest.raises(ConfigError, match=r"no split 'validation', only train; .*train\[90%:\]"):
        read("validation", str(tmp_path))
    with pytest.raises(ConfigError, match=r"split 'train\[a:\]' is no name or slice"):
        read("train[a:]", str(tmp_path))
    with pytest.raises(MissingInput, match=r"has no rt-polarity\.neg"):
        read("train", str(tmp_path))
    with pytest.raises(MissingInput, match=r"is not in TFDS; .*task:sentences/polarity@FOLDER"):
        read("train", "")
    for name in ("train_a.jsonl", "train_b.jsonl"):
        _file(tmp_path, name, json.dumps(CSQA))
    with pytest.raises(ConfigError, match=r"has train_a\.jsonl, train_b\.jsonl: name the file"):
        find("choice/commonsenseqa").read("train", str(tmp_path))


def test_slices_share_nothing_and_miss_nothing(tmp_path):
    _file(tmp_path, "train.tsv", "".join(f"query {i}\t0.5\n" for i in range(17)))
    read = find("sentences/wellformedness").read
    whole = read("train", str(tmp_path))
    assert len(whole) == 17
    for at in ("33%", "5", "-4", "-10%"):
        parts = read(f"train[:{at}]", str(tmp_path)), read(f"train[{at}:]", str(tmp_path))
        assert parts[0] + parts[1] == whole
    assert read("train[2:4]", str(tmp_path)) == whole[2:4]
    with pytest.raises(DataError, match=r"'train\[:0%\]' of 17 examples is empty"):
        read("train[:0%]", str(tmp_path))


def test_a_file_per_class_is_put_in_one_order_that_mixes_them(tmp_path):
    _file(tmp_path, "rt-polarity.neg", "\n".join(f"bad {i}" for i in range(50)) + "\n\n")
    _file(tmp_path, "rt-polarity.pos.gz", ("caf\xe9\n" + "good\n" * 50).encode("latin-1"))
    examples = find("sentences/polarity").read("train", str(tmp_path))
    assert len(examples) == 101 and "café" in {e["text"] for e in examples}
    half = find("sentences/polarity").read("train[:50%]", str(tmp_path))
    assert {e["label"] for e in half} == {0, 1} or "good" not in {e["text"] for e in half}


# From TFDS.


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    import numpy as np
    import tensorflow_datasets as tfds

    f = tfds.features
    answers = f.Sequence({"text": f.Text(), "answer_start": np.int32})
    labels = {"label": f.ClassLabel(names=["negative", "positive"])}
    sets = {
        ("glue", "sst2", "train"): (
            {"sentence": f.Text(), "idx": np.int32, **labels},
            [{"sentence": "fine", "idx": 7, "label": 1}, {"sentence": "é", "idx": 9, "label": -1}],
        ),
        ("squad", "v2.0", "validation"): (
            {"id": np.str_, "context": f.Text(), "question": f.Text(), "is_impossible": np.bool_,
             "answers": answers},
            [{"id": "a", "context": "The cat.", "question": "Q?", "is_impossible": False,
              "answers": {"text": ["cat"], "answer_start": [4]}},
             {"id": "b", "context": "The cat.", "question": "R?", "is_impossible": True,
              "answers": {"text": [], "answer_start": []}}],
        ),
        ("super_glue", "record", "validation"): (
            {"passage": f.Text(), "query": f.Text(), "answers": f.Sequence(f.Text()),
             "entities": f.Sequence(f.Text()), "idx": {"passage": np.int32, "query": np.int32}},
            [{"passage": "Ann met Bo. Ann left.", "query": "@placeholder left", "answers": ["Ann"],
              "entities": ["Ann", "Bo"], "idx": {"passage": 0, "query": 4}}],
        ),
        ("conll2003", "conll2003", "dev"): (
            {"tokens": f.Sequence(f.Text()), "ner": f.Sequence(f.ClassLabel(num_classes=9))},
            [{"tokens": ["EU", "in"], "ner": [3, 0]}],
        ),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("tfds")
    for (name, config, split), (features, records) in sets.items():
        place = folder / name / config / "1.0.0"
        place.mkdir(parents=True)
        writer = tfds.core.SequentialWriter(
            tfds.core.DatasetInfo(
                builder=tfds.core.dataset_info.DatasetIdentity(
                    name=name, version=tfds.core.Version("1.0.0"), data_dir=str(place),
                    module_name="", config_name=config,
                ),
                features=f.FeaturesDict(features),
            ),
            max_examples_per_shard=10,
            file_format="array_record",
        )  # fmt: skip
        writer.initialize_splits([split])
        writer.add_examples({split: records})
        writer.close_all()
    return folder


def test_tfds_by_its_name(tfds_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    assert find("glue/sst2").read("train") == [
        {"id": "7", "text": "fine", "pair": None, "label": 1},
        {"id": "9", "text": "é", "pair": None, "label": None},
    ]
    assert [(e["answers"], e["impossible"]) for e in find("squad/v2").read("validation")] == [
        ([{"text": "cat", "start": 4}], False),
        ([], True),
    ]
    [record] = find("superglue/record").read("validation")
    assert record["answers"] == [{"text": "Ann", "start": 0}, {"text": "Ann", "start": 12}]
    [example] = find("ner/conll2003").read("validation")
    assert (example["words"], example["tags"]) == (["EU", "in"], [3, 0])
    assert json.dumps([record, example])  # Python's own types
    with pytest.raises(ConfigError, match="tfds:glue/sst2 has no split 'test'"):
        find("glue/sst2").read("test")
    with pytest.raises(MissingInput, match="tfds:glue/rte is not prepared"):
        find("glue/rte").read("train")


# Result files.


def test_glue_files_are_in_the_order_of_the_publisher(tmp_path):
    out = tmp_path / "out.tsv"
    examples = [{"id": "10"}, {"id": "9"}]
    find("glue/qnli").write([1, 0], examples, str(out))
    assert out.read_text() == "index\tprediction\n9\tentailment\n10\tnot_entailment\n"
    find("glue/cola").write([1, [0.7, 0.3]], examples, str(out))
    assert out.read_text() == "index\tprediction\n9\t0\n10\t1\n"
    find("glue/stsb").write([5.2, 1.23456], examples, str(out))
    assert out.read_text() == "index\tprediction\n9\t1.235\n10\t5.000\n"


def test_superglue_files(tmp_path):
    out = tmp_path / "out.jsonl"

    def rows():
        return [json.loads(line) for line in out.read_text().splitlines()]

    find("superglue/boolq").write([1, 0], [{"id": "1"}, {"id": "0"}], str(out))
    assert rows() == [{"idx": 0, "label": "false"}, {"idx": 1, "label": "true"}]
    find("superglue/copa").write([1], [{"id": "0"}], str(out))
    assert rows() == [{"idx": 0, "label": 1}]
    find("superglue/record").write([{"text": "Ann", "no_answer": 0.0}], [{"id": "4"}], str(out))
    assert rows() == [{"idx": 4, "label": "Ann"}]
    examples = [{"id": "3-0-0"}, {"id": "3-0-1"}, {"id": "3-1-0"}]
    find("superglue/multirc").write([1, 0, 1], examples, str(out))
    answers = [[{"idx": 0, "label": 1}, {"idx": 1, "label": 0}], [{"idx": 0, "label": 1}]]
    questions = [{"idx": i, "answers": some} for i, some in enumerate(answers)]
    assert rows() == [{"idx": 3, "passage": {"questions": questions}}]


def test_squad_files(tmp_path):
    answers = [{"text": "cat", "no_answer": -1.5}, {"text": "값", "no_answer": 0.5}]
    find("squad/v2").write(answers, [{"id": "a"}, {"id": "b"}], str(tmp_path / "predictions.json"))
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"a": "cat", "b": ""}
    doubt = json.loads((tmp_path / "predictions_na_probs.json").read_text())
    assert doubt == {"a": -1.5, "b": 0.5}


def test_choice_files(tmp_path):
    out = tmp_path / "out.csv"
    find("choice/swag").write([[0.1, 0.2, 0.4, 0.3]], [{"id": "0"}], str(out))
    with open(out, newline="") as file:
        [row] = csv.DictReader(file)
    assert row["pred"] == "2" and float(row["ending3"]) == 0.3
    find("choice/commonsenseqa").write([4], [{"id": "x"}], str(out))
    assert out.read_text() == "id,answer\nx,E\n"


@pytest.mark.parametrize("name", ["klue/ner", "klue/dp"])
def test_klue_files_read_as_data(name, tmp_path):
    [(file, text)] = [(c[2], c[3]) for c in CASES if c[0] == name]
    task = find(name)
    examples = task.read(
        "validation" if "dev" in file else "train", str(_file(tmp_path, file, text))
    )
    if name == "klue/ner":
        answers = [[len(NER) - 1, 0, 1], [2]]
        expected = [{**e, "tags": a} for e, a in zip(examples, answers, strict=True)]
    else:
        answers = [([0, 1], [5, len(ARCS) - 1])]
        expected = [{**examples[0], "heads": [0, 1], "relations": [5, len(ARCS) - 1]}]
    out = tmp_path / "out.tsv"
    task.write(answers, examples, str(out))
    assert task.read("train", str(out)) == expected
    assert max(task.metrics(answers, expected).values()) == pytest.approx(100.0)


def test_other_files(tmp_path):
    out = tmp_path / "out"
    examples = [{"id": "w", "words": ["a", "b"], "tags": [0, 1]}]
    find("ner/wnut17").write([[1, 2]], examples, str(out))
    assert out.read_text() == "a O B-corporation\nb B-corporation I-corporation\n\n"
    find("klue/wos").write([{SLOTS[0]: "yes"}], [{"id": "w-0"}], str(out))
    assert json.loads(out.read_text()) == {"w-0": [f"{SLOTS[0]}-yes"]}
    find("klue/ynat").write([1], [{"id": "y"}], str(out))
    assert out.read_text() == "id\tlabel\ny\t경제\n"
    find("korean/korsts").write([2.5], [{"id": "0"}], str(out))
    assert out.read_text() == "id\tscore\n0\t2.500000\n"


# All tasks, and what they score without reading.


def _made(form):
    """Examples of a form, and a perfect answer to each."""
    base = {"id": "1", "text": "a", "pair": None}
    if isinstance(form, Classes):
        return [{**base, "label": i % len(form.labels), "group": "0"} for i in range(4)], "label"
    if isinstance(form, Score):
        return [{**base, "label": x} for x in (form.low, form.high, form.high)], "label"
    if isinstance(form, Choices):
        return [{**base, "endings": ["x"] * form.count, "label": 1, "term": "t"}] * 2, "label"
    if isinstance(form, Tags):
        begin = next(i for i, tag in enumerate(form.labels) if tag[0] == "B")
        return [{"id": "1", "words": ["x", "y"], "tags": [form.labels.index("O"), begin]}], "tags"
    if isinstance(form, States):
        return [{**base, "state": {form.slots[0]: "x"}}], "state"
    if isinstance(form, Arcs):
        words = {"words": ["x", "y"], "heads": [2, 0], "relations": [1, 2]}
        return [{"id": "1", **words}], None
    assert isinstance(form, Spans)
    answers = [{"text": "cat", "start": 4}]
    example = {"id": "1", "question": "?", "context": "The cat", "answers": answers}
    return [{**example, "impossible": False}], "span"


@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("blimp/")])
def test_perfect_answers_score_100_and_baselines_no_more(name):
    task = find(name)
    examples, key = _made(task.form)
    if key == "span":
        perfect = [{"text": "cat", "no_answer": -1.0}]
    elif key is None:
        perfect = [(e["heads"], e["relations"]) for e in examples]
    else:
        perfect = [example[key] for example in examples]
    best = task.metrics(perfect, examples)[task.main]
    usual = task.metrics(majority(task, examples, examples), examples)[task.main]
    assert best == pytest.approx(100.0) and 0.0 <= usual <= best


def test_baselines_learn_from_the_training_examples_alone():
    task = find("ner/wnut17")
    train = [{"id": "1", "words": ["EU", "in"], "tags": [1, 0]}]
    train += [{"id": "2", "words": ["in"], "tags": [0]}]
    assert majority(task, train, [{"words": ["in", "new", "EU"]}]) == [[0, 0, 1]]
    kinds = find("klue/dp")
    train = [{"id": "1", "heads": [2, 0], "relations": [4, 4]}]
    assert majority(kinds, train, [{"words": "abc"}]) == [([2, 3, 0], [4, 4, 4])]
    states = find("klue/wos")
    train = [{"id": str(i), "state": {SLOTS[1]: "no"} if i else {}} for i in range(3)]
    assert majority(states, train, [{}]) == [{SLOTS[1]: "no"}]
    with pytest.raises(DataError, match="has no label"):
        majority(find("glue/rte"), [{"id": "1", "label": None}], [])


def test_blimp_pairs_alternate_so_that_a_constant_answer_scores_half(tmp_path):
    term = {"field": "syntax", "linguistics_term": "island_effects"}
    rows = [
        {"sentence_good": f"g{i}", "sentence_bad": f"b{i}", "UID": uid, "pairID": str(i), **term}
        for uid in ("wh_island", "passive_1")
        for i in range(4)
    ]
    _file(tmp_path, "blimp.jsonl", "\n".join(map(json.dumps, rows)))
    task = find("blimp/wh_island")
    examples = task.read("test", str(tmp_path))
    assert [e["endings"][e["label"]] for e in examples] == ["g0", "g1", "g2", "g3"]
    assert task.metrics([0] * 4, examples) == {"accuracy": 50.0}
    every = find("blimp/all")
    assert len(every.read("test", str(tmp_path))) == 8
    assert set(every.metrics([0] * 4, examples)) == {"accuracy", "island_effects"}
    with pytest.raises(DataError, match="has no pairs of transitive"):
        find("blimp/transitive").read("test", str(tmp_path))


def test_the_page_lists_every_task_with_its_metrics():
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if re.match(r"\| `\w+/\w+`", line)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    listed = {row[0].split("`")[1]: row for row in rows if len(row) == 6}
    assert set(listed) == {n for n in names() if not n.startswith("blimp/")} | {
        "blimp/all",
        "blimp/wh_island",
    }
    for name, row in listed.items():
        assert row[2].split(",")[0] == find(name).main, name


# Real files, where they are.

SAMPLES = [
    ("korean/nsmc", "train", ("ko_nsmc", "nsmc_binary.tsv.gz"), 11_622),
    ("sentences/polarity", "train", ("en_sentence_polarity",), 8_407),
    ("sentences/subjectivity", "train", ("en_subjectivity",), 7_956),
    ("sentences/wellformedness", "validation", ("en_query_wellformedness",), 3_750),
    ("nli/med", "train", ("en_med_nli",), 3_516),
    ("squad/v2", "validation", ("en_squad_v2",), 4_549),
    ("squad/v1", "validation", ("en_xquad",), 904),
    ("choice/commonsenseqa3", "train", ("en_commonsenseqa",), 4_000),
    ("choice/swag", "train", ("format_fixtures", "swag.csv"), 11),
    ("superglue/rte", "train", ("format_fixtures", "superglue_rte.jsonl"), 4),
    ("superglue/record", "train", ("format_fixtures", "record.json"), 2),
    ("ner/wnut17", "train", ("en_wnut17_ner",), 3_394),
    ("ner/wnut17", "validation", ("en_wnut17_ner",), 1_009),
    ("klue/ner", "validation", ("ko_klue",), 3_440),
    ("klue/dp", "validation", ("ko_klue",), 1_388),
    ("klue/nli", "validation", ("ko_klue",), 2_079),
    ("klue/sts", "validation", ("ko_klue",), 378),
    ("korean/korsts", "train", ("ko_korsts",), 5_749),
    ("korean/kornli", "validation", ("ko_kornli",), 2_490),
    ("blimp/all", "test", ("en_blimp",), 33_500),
]


@pytest.mark.parametrize("name, split, place, count", SAMPLES)
def test_published_files_read_whole(name, split, place, count, caplog):
    examples = find(name).read(split, str(sample_data(*place)))
    assert len(examples) == count and len({e["id"] for e in examples}) == count
    assert not caplog.records


def test_the_ontology_is_that_of_the_slots():
    values = klue_files.ontology(str(sample_data("ko_klue")))
    assert tuple(values) == SLOTS and "dontcare" in values[SLOTS[0]]

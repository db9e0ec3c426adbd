"""Examples as texts and back: plain templates, the built-in ones, promptsource's files."""

import importlib
import sys

import pytest

from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.objectives.templates import Asked, Template, read_answer
from flaxlm.prompts import builtin
from flaxlm.tasks.base import Choices, Classes, Score, Spans, Tags, find, names
from tests.vocabs import sample_data

TWO = Classes(("negative", "positive"))
NLI = Classes(("entailment", "not_entailment"), pair=True)
PAIR = {"id": "0", "text": "A man eats.", "pair": "He eats.", "label": 1}
FILM = {"id": "1", "text": "fine", "pair": None, "label": 1}
ENDED = {"id": "2", "text": "Where?", "endings": ["here", "in a b", "up"], "label": 1}
SCORED = {"id": "3", "text": "a", "pair": "b", "label": 3.25}
ASKED = {
    "id": "4", "question": "who?", "context": "Bob sat.",
    "answers": [{"text": "Bob", "start": 0}], "impossible": False,
}  # fmt: skip


def test_a_template_is_filled():
    found = Template("{text} {{it}} is {names}:", choices=("bad", "good")).ask(FILM, TWO)
    assert found == Asked("fine {it} is bad or good:", "good", ("bad", "good"))
    found = Template("{text}\n{options}\n", "({answer})", choices=("A", "B", "C")).ask(
        ENDED, Choices(3)
    )
    assert found.input == "Where?\nA. here\nB. in a b\nC. up\n"
    assert (found.target, found.candidates) == ("(B)", ("(A)", "(B)", "(C)"))
    assert Template("{choice2}?").ask(ENDED, Choices(3)).candidates == ("here", "in a b", "up")
    assert Template("{question}").ask(ASKED, Spans()).target == "Bob"
    none = {**ASKED, "answers": [], "impossible": True}
    assert Template("{question}").ask(none, Spans(True)).target == "unanswerable"
    unknown = Template("{text}").ask({**PAIR, "label": None}, NLI)
    assert unknown == Asked("A man eats.", None, NLI.labels)


def test_a_fields_text_is_no_template():
    assert Template("{text}").ask({**FILM, "text": "{pair} {0}"}, TWO).input == "{pair} {0}"


@pytest.mark.parametrize(
    ("template", "form", "error"),
    [
        ({"input": "{text"}, TWO, "expected '}'"),
        ({"input": "{text.__class__}"}, TWO, "the name of a field alone"),
        ({"input": "{text!r}"}, TWO, "the name of a field alone"),
        ({"input": "{text:>9}"}, TWO, "the name of a field alone"),
        ({"input": "{}"}, TWO, "the name of a field alone"),
        ({"input": "{0}"}, TWO, "the name of a field alone"),
        ({"input": "{pair}"}, TWO, "names {pair}; an example of task:a/b has names, text"),
        ({"input": "{text} {answer}"}, TWO, "names {answer}"),
        ({"input": "{text}", "choices": ("a",)}, TWO, "has 1 choices; task:a/b has 2"),
        ({"input": "{text}", "choices": ("a", "a")}, TWO, "would be called alike"),
        ({"input": "{text}", "choices": ("a",)}, Spans(), "task:a/b is no choice"),
        ({"input": "{text}"}, Tags(("O",)), "of the form Tags, which has no text to answer with"),
    ],
)
def test_a_bad_template_says_so_in_a_line(template, form, error):
    with pytest.raises(ConfigError) as raised:
        Template(**template).check(form, name="a/b")
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_an_answer_is_read_back():
    asked = Template("{text}", choices=("bad", "good")).ask(FILM, TWO)
    assert [read_answer(text, asked, FILM, TWO) for text in ("bad", " good\n", "other")] == [
        0,
        1,
        0,
    ]
    form = Score(0.0, 5.0, pair=True)
    asked = Template("{text}").ask(SCORED, form)
    answers = [read_answer(text, asked, SCORED, form) for text in ("3.2", "9", "nan", "much", "-1")]
    assert answers == [3.2, 5.0, 0.0, 0.0, 0.0]
    asked = Template("{question}").ask(ASKED, Spans(True))
    found = [read_answer(text, asked, ASKED, Spans(True)) for text in ("Bob", "unanswerable")]
    assert found == [{"text": "Bob", "no_answer": 0.0}, {"text": "", "no_answer": 1.0}]


# Raffel et al. 2020, appendix D, the parts of the published examples that are short.
PUBLISHED = [
    ("glue/cola", FILM, "cola sentence: fine", "acceptable"),
    ("glue/sst2", FILM, "sst2 sentence: fine", "positive"),
    ("glue/stsb", SCORED, "stsb sentence1: a sentence2: b", "3.2"),
    ("glue/rte", PAIR, "rte sentence1: A man eats. sentence2: He eats.", "not_entailment"),
    ("glue/mnli", PAIR, "mnli hypothesis: He eats. premise: A man eats.", "neutral"),
    ("glue/qnli", PAIR, "qnli question: A man eats. sentence: He eats.", "not_entailment"),
    ("glue/mrpc", PAIR, "mrpc sentence1: A man eats. sentence2: He eats.", "equivalent"),
    ("glue/qqp", PAIR, "qqp question1: A man eats. question2: He eats.", "duplicate"),
    ("superglue/cb", PAIR, "cb hypothesis: He eats. premise: A man eats.", "contradiction"),
    ("superglue/boolq", PAIR, "boolq passage: He eats. question: A man eats.", "True"),
    ("squad/v1", ASKED, "question: who? context: Bob sat.", "Bob"),
]


@pytest.mark.parametrize(("task", "example", "text", "target"), PUBLISHED)
def test_t5s_prefixes_are_the_papers(task, example, text, target):
    found = builtin.find(find(task), "t5").ask(example, find(task).form)
    assert (found.input, found.target) == (text, target)


@pytest.mark.parametrize(("number", "text"), [(0.0, "0.0"), (2.5, "2.4"), (4.7, "4.8"), (5, "5.0")])
def test_numbers_are_said_in_steps(number, text):
    """As tf.round does: halves go to the even step."""
    found = builtin.T5["glue/stsb"].ask({**SCORED, "label": number}, Score(0.0, 5.0, pair=True))
    assert found.target == text


def test_every_built_in_template_fits_its_task():
    asked = 0
    for name in names():
        task = find(name)
        if type(task.form).__name__ in ("Classes", "Score", "Choices", "Spans"):
            found = builtin.templates(task)
            assert "qa" in found
            for template in found.values():
                template.check(task.form, name=name)
                asked += 1
        else:
            with pytest.raises(ConfigError, match="no text to answer with"):
                builtin.templates(task)
    assert asked > 150
    gpt3 = builtin.find(find("klue/nli"), "gpt3")
    assert gpt3.choices == ("True", "False", "Neither")  # entailment, contradiction, neutral
    with pytest.raises(ConfigError, match="no template 'T5'; did you mean t5"):
        builtin.find(find("glue/rte"), "T5")


# promptsource


@pytest.fixture(scope="module")
def promptsource():
    pytest.importorskip("jinja2", reason="needs the prompts extra: jinja2")
    pytest.importorskip("yaml", reason="needs the prompts extra: pyyaml")
    return importlib.import_module("flaxlm.prompts.promptsource")


def written(path, body, *, name="one", answers="no ||| yes", more=""):
    lines = [
        "dataset: glue", "templates:", "  1-a: !Template", f"    answer_choices: {answers}",
        "    jinja: |-", *(f"      {line}" for line in body.splitlines()),
        "    metadata: &id001 !TemplateMetadata", "      original_task: true",
        f"    name: {name}", "    reference: ''", more,
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


FIELDS = {
    "ag_news": {"text": "Stocks fell.", "label": 2},
    "commonsense_qa": {
        "question": "Where?", "choices": {"text": list("vwxyz"), "label": list("ABCDE")},
        "answerKey": "C",
    },
    "cos_e": {
        "question": "Q?", "choices": ["a", "b", "c"], "answer": "b",
        "abstractive_explanation": "as", "extractive_explanation": "e",
    },
    "glue__rte": {"sentence1": "A", "sentence2": "B ||| C", "label": 1},
    "glue__stsb": {"sentence1": "A", "sentence2": "B", "label": 3.25},
    "google": {"content": "who is it", "rating": 0.6},
    "imdb": {"text": "T", "label": 0},
    "rotten_tomatoes": {"text": "T", "label": 0},
    "qasc": {
        "question": "What is it?", "choices": {"text": ["A b", "C d"], "label": ["A", "B"]},
        "answerKey": "B", "combinedfact": "X y.", "fact1": "F one.", "fact2": "G two.",
    },
    "squad": {
        "id": "1", "title": "T_i", "context": "C here", "question": "Q?",
        "answers": {"text": ["C"], "answer_start": [0]},
    },
    "wiki_split": {
        "complex_sentence": "a '' '' b", "simple_sentence_1": "a", "simple_sentence_2": "b"
    },
    "xnli": {"premise": "P", "hypothesis": "H", "label": 2},
}  # fmt: skip


def test_real_files_are_rendered_as_plain_jinja_does(promptsource, monkeypatch):
    import jinja2

    from flaxlm.prompts import sandbox

    plain = jinja2.Environment()
    plain.globals["zip"] = zip
    plain.filters["choice"] = lambda items: items[0]
    monkeypatch.setitem(sandbox._ENVIRONMENT.filters, "choice", lambda items: items[0])
    folder = sample_data("promptsource_templates")
    count = 0
    for path in sorted(folder.glob("*.yaml")):
        fields = next(some for name, some in FIELDS.items() if path.name.startswith(name))
        rows = promptsource._Loader(path.read_bytes()).get_single_data()["templates"].values()
        for template, row in zip(promptsource.read(path), rows, strict=True):
            inner = {
                k: v.replace("|||", "#") if isinstance(v, str) else v for k, v in fields.items()
            }
            choices = None
            if row["answer_choices"]:
                choices = plain.from_string(row["answer_choices"]).render(**inner).split("|||")
                choices = [choice.strip() for choice in choices]
            text = plain.from_string(row["jinja"]).render(**inner, answer_choices=choices)
            wanted = [part.strip().replace("#", "|||") for part in text.split("|||")]
            assert template.render(fields) == wanted, template.place
            count += 1
    assert count == 108


def test_real_templates_put_our_tasks(promptsource):
    folder = sample_data("promptsource_templates")
    found = promptsource.choose(folder / "glue__rte.yaml", task="glue/rte")
    assert [one.ask(PAIR, NLI).target for one in found] == [
        "no", "no", "not entailment", "no", "no"
    ]  # fmt: skip
    (one,) = promptsource.choose(folder / "rotten_tomatoes.yaml", "Reviewer Enjoyment", task="x/y")
    assert one.ask(FILM, TWO).candidates == ("They didn't like it", "They loved it")
    for template in promptsource.choose(folder / "squad_v2.yaml", task="squad/v2"):
        assert template.ask(ASKED, Spans(True)).target == "Bob"
        assert template.ask(ASKED, Spans(True)) == template.ask(ASKED, Spans(True))
    every = {one.name: one for one in promptsource.read(folder / "commonsense_qa.yaml")}
    example = {**ENDED, "endings": list("vwxyz")}
    assert every["most_suitable_answer"].ask(example, Choices(5)).candidates == tuple("vwxyz")
    with pytest.raises(ConfigError, match=r"what is asked changes|says the same for two"):
        every["answer_to_question"].ask(example, Choices(5))
    with pytest.raises(ConfigError, match=r"no template 'imply2'; did you mean imply"):
        promptsource.choose(folder / "glue__rte.yaml", "imply2", task="glue/rte")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("{{ ''.__class__.__mro__ }}|||x", "'__class__' of 'str' object is unsafe"),
        ("{{ text['__class__'] }}|||x", "'__class__' of 'str' object is unsafe"),
        ("{{ range.__globals__ }}|||x", "is unsafe"),
        ("{{ text.format(1) }}|||x", "'format' of 'str' object is unsafe"),
        ("{{ text|attr('__class__') }}|||x", "No filter named 'attr'"),
        ("{{ self }}|||x", "TemplateReference"),
        ("{{ lipsum() }}|||x", "'lipsum' is undefined"),
        ("{{ pair }}|||x", "'pair' is undefined"),
        ("{% include 'a' %}|||x", "Include is not allowed"),
        ("{% import 'a' as b %}|||x", "Import is not allowed"),
        ("{% macro a() %}{{ a() }}{% endmacro %}|||x", "Macro is not allowed"),
        ("{% for c in text recursive %}{{ loop(c) }}{% endfor %}|||x", "recursive loop"),
        ("{% for i in range(9999) %}{% endfor %}|||x", "a range of 9,999"),
        (
            "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}|||x",
            "loops more than 10,000 times",
        ),
        ("{{ 'a' * 10000000000 }}|||x", "'*' is for numbers"),
        ("{{ '%9999999999d' % 1 }}|||x", "'%' is for numbers"),
        ("{{ 2 ** 2 ** 99 }}|||x", "Pow is not allowed"),
        ("{{ text ~ text }}|||x", "Concat is not allowed"),
        ("{% set a = text %}" + "{% set a = a + a %}" * 40 + "|||x", "more than 100,000"),
        ("{% set a = text %}" + "{% set a = a.join([a, a, a]) %}" * 40 + "|||x", "more than 100,"),
        ("{% set a = text %}" + "{% set a = a.replace('', a) %}" * 40 + "|||x", "more than 100,"),
        ("{% set a = 1 %}" + "{% set a = [a, a] %}" * 40 + "{{ a == a }}|||x", "a list where"),
        ("{% set a = [1] %}" + "{% set a = zip(a, a) %}" * 40 + "{{ a }}|||x", "a zip where"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}|||x", "recursion"),
        ("{{ 1 / 0 }}|||x", "ZeroDivisionError"),
        ("{{ text|passes }}|||x", "no filter named 'passes'"),
        ("{{ ((( |||x", "unexpected"),
        ("{{ text }}", r"no ||| between"),
        ("{{ text }}|||{{ label }}{{ label }}", ""),
    ],
)
def test_templates_cannot_leave_their_place(promptsource, tmp_path, body, error):
    path = written(tmp_path / "some.yaml", body)
    if not error:
        assert promptsource.read(path)[0].render({"text": "a", "label": 1}) == ["a", "11"]
        return
    with pytest.raises(DataError) as raised:
        promptsource.read(path)[0].render({"text": "a, b"})
    line = str(raised.value)
    assert error in line and "\n" not in line and line.startswith(f"{path}:one: "), line


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("templates: [1", "while parsing"),
        ("a: 1", "has no templates"),
        ("- 1", "has no templates"),
        ("templates: {1: {name: a}}", "jinja is 'None', expected text"),
        ("templates: {1: 5}", "name is 'None', expected text"),
        ("templates: {1: !Other {name: a}}", "could not determine a constructor"),
        ("!!python/object/apply:os.system ['touch x']", "could not determine a constructor"),
        ("templates: {1: !!python/name:os.system x}", "could not determine a constructor"),
        ("a: " + "[" * 5000, ""),
        ("\x00", "special characters are not allowed"),
    ],
)
def test_a_bad_file_says_so_in_a_line(promptsource, tmp_path, text, error):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        promptsource.read(path)
    assert error in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(path))
    assert not (tmp_path / "x").exists()


def test_files_of_another_use_are_refused(promptsource, tmp_path):
    path = written(tmp_path / "a.yaml", "Write a {{ answer_choices[label] }} text:|||{{ text }}")
    (one,) = promptsource.read(path, task="glue/sst2")
    with pytest.raises(ConfigError, match="what is asked changes with the label"):
        one.ask(FILM, TWO)
    path = written(tmp_path / "b.yaml", "{{ text }}|||good")
    with pytest.raises(ConfigError, match="says the same for two of the 2 answers"):
        promptsource.read(path)[0].ask(FILM, TWO)
    path = written(tmp_path / "c.yaml", "{{ text }}|||{% if label %}good{% endif %}")
    with pytest.raises(DataError, match="says nothing for example '1'"):
        promptsource.read(path)[0].ask(FILM, TWO)
    with pytest.raises(MissingInput, match="No such file"):
        promptsource.read(tmp_path / "d.yaml")


def test_without_the_extra_a_line_says_what_to_install(monkeypatch):
    for package, module in (("jinja2", "sandbox"), ("yaml", "promptsource")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"flaxlm.prompts.{module}", raising=False)
        with pytest.raises(ConfigError, match=r"pip install 'flaxlm\[prompts\]'"):
            importlib.import_module(f"flaxlm.prompts.{module}")
        monkeypatch.undo()

"""BLiMP (Warstadt et al., 2020): pairs of sentences of which one is good, 67 paradigms.

A pair is a choice of two endings of an empty text, the good one first in every other pair, so that
a model that cannot tell scores half. Nothing is there to train on: the split is "test".
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxlm.errors import DataError
from flaxlm.tasks import files
from flaxlm.tasks.base import Choices, Example, Task
from flaxlm.tasks.measures import ACCURACY, aligned, indices, known, write_labels
from flaxlm.tasks.metrics import accuracy

PARADIGMS = tuple(
    """
    adjunct_island anaphor_gender_agreement anaphor_number_agreement animate_subject_passive
    animate_subject_trans causative complex_NP_island
    coordinate_structure_constraint_complex_left_branch
    coordinate_structure_constraint_object_extraction determiner_noun_agreement_1
    determiner_noun_agreement_2 determiner_noun_agreement_irregular_1
    determiner_noun_agreement_irregular_2 determiner_noun_agreement_with_adj_2
    determiner_noun_agreement_with_adj_irregular_1
    determiner_noun_agreement_with_adj_irregular_2 determiner_noun_agreement_with_adjective_1
    distractor_agreement_relational_noun distractor_agreement_relative_clause drop_argument
    ellipsis_n_bar_1 ellipsis_n_bar_2 existential_there_object_raising
    existential_there_quantifiers_1 existential_there_quantifiers_2
    existential_there_subject_raising expletive_it_object_raising inchoative intransitive
    irregular_past_participle_adjectives irregular_past_participle_verbs
    irregular_plural_subject_verb_agreement_1 irregular_plural_subject_verb_agreement_2
    left_branch_island_echo_question left_branch_island_simple_question
    matrix_question_npi_licensor_present npi_present_1 npi_present_2 only_npi_licensor_present
    only_npi_scope passive_1 passive_2 principle_A_c_command principle_A_case_1
    principle_A_case_2 principle_A_domain_1 principle_A_domain_2 principle_A_domain_3
    principle_A_reconstruction regular_plural_subject_verb_agreement_1
    regular_plural_subject_verb_agreement_2 sentential_negation_npi_licensor_present
    sentential_negation_npi_scope sentential_subject_island superlative_quantifiers_1
    superlative_quantifiers_2 tough_vs_raising_1 tough_vs_raising_2 transitive wh_island
    wh_questions_object_gap wh_questions_subject_gap wh_questions_subject_gap_long_distance
    wh_vs_that_no_gap wh_vs_that_no_gap_long_distance wh_vs_that_with_gap
    wh_vs_that_with_gap_long_distance
    """.split()
)
EVERY = "all"  # every paradigm, in one task


def _example(row: Mapping[str, Any], number: str, place: str) -> Example:
    good, bad = (files.field(row, f"sentence_{kind}", place) for kind in ("good", "bad"))
    label = int(number) % 2
    return {
        "id": f"{files.field(row, 'UID', place)}-{number}",
        "text": "",
        "endings": [bad, good] if label else [good, bad],
        "label": label,
        "term": files.field(row, "linguistics_term", place),
    }


def _parsed(path: Path, wanted: frozenset[str]) -> list[Example]:
    examples = []
    for place, row in files.json_lines(path):
        number = str(files.field(row, "pairID", place, (str, int)))
        if not number.isdecimal():
            raise DataError(f"{place}: pairID {number!r} is not a number")
        if files.field(row, "UID", place) in wanted:
            examples.append(_example(row, number, place))
    if not examples:
        raise DataError(f"{path} has no pairs of {' or '.join(sorted(wanted)[:3])}")
    return examples


def _read(key: str):
    def reader(paradigm: str):
        wanted = frozenset(PARADIGMS if paradigm == EVERY else (paradigm,))
        return files.reader(
            f"blimp/{key}",
            files={"test": (f"{paradigm}.jsonl", "blimp.jsonl")},
            parse=lambda path, split: _parsed(path, wanted),
            tfds=f"blimp/{paradigm}",
            convert=lambda record, place: _example(record, str(record["pair_id"]), place),
            tfds_splits={"test": "train"},
        )

    def each(split: str, folder: str) -> list[Example]:
        if folder and not Path(folder).expanduser().joinpath(f"{PARADIGMS[0]}.jsonl").is_file():
            return reader(EVERY)(split, folder)  # one file has them all
        return [e for paradigm in PARADIGMS for e in reader(paradigm)(split, folder)]

    return each if key == EVERY else reader(key)


def _metrics(answers, examples) -> Mapping[str, float]:
    """Accuracy, and that of each linguistic term."""
    aligned(answers, examples)
    known(examples, "label")
    pairs = defaultdict(list)
    for answer, example in zip(indices(answers), examples, strict=True):
        pairs[example["term"]].append((answer, example["label"]))
    each = {term: 100 * accuracy(*zip(*some, strict=True)) for term, some in sorted(pairs.items())}
    return {**ACCURACY(answers, examples), **each}


def _task(key: str) -> Task:
    metrics = _metrics if key == EVERY else ACCURACY
    return Task(f"blimp/{key}", Choices(2), _read(key), metrics, "accuracy", write_labels("01"))


TASKS = {key: _task(key) for key in (EVERY, *PARADIGMS)}

"""Templates in promptsource's files (Bach et al. 2022): YAML, with a Jinja text for each template
in which "|||" parts what is asked from what is to be said.

The YAML is read with the safe loader and constructors for two tags that make plain dicts; the Jinja
is held to what `flaxlm.prompts.sandbox` allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flaxlm.errors import ConfigError, DataError, MissingInput, nearest
from flaxlm.objectives.templates import FORMS, Asked, names_of
from flaxlm.prompts.fields import published
from flaxlm.prompts.sandbox import Compiled, Unfit

try:
    import yaml
except ImportError:
    raise ConfigError("files of promptsource need pyyaml: pip install 'flaxlm[prompts]'") from None

_BYTES = 1 << 20  # of a file; the largest that is published has 50 kB
_SEPARATOR = "|||"
_ESCAPED = "\ue000\ue001\ue000"  # stands for the separator in an example's own text


@dataclass(frozen=True)
class Jinja:
    """A template of a file, as `flaxlm.objectives.templates.Template`.

    Attributes:
      name: in the file.
      body, answers: Jinja; `answers` of the answer choices, "" if there are none.
      original: whether it puts the task for which its data set was made.
      place: file and name, for messages.
      task: the name of the task that it is to put; "" renders fields alone.
      join: what stands between input and target where one stack reads both.
    """

    name: str
    body: Compiled
    answers: Compiled | None
    original: bool
    place: str
    task: str = ""
    join: str = " "

    def render(self, fields: Mapping[str, Any], *, seed: str = "") -> list[str]:
        """[input, target, ...]: the parts of the text for an example's own fields; a target that
        does not apply is not there. All as promptsource renders them, but for "choice", which takes
        the same for the same `seed`.

        Raises:
          DataError: in one line, what the template asks for and the example does not have.
        """
        try:
            safe = _escaped(dict(fields))
            safe["answer_choices"] = None
            if self.answers is not None:
                safe["answer_choices"] = _parts(self.answers(safe, seed=seed))
            return _parts(self.body(safe, seed=seed))
        except Unfit as error:
            raise DataError(f"{self.place}: {error}") from None

    def check(self, form, *, name: str) -> None:
        """See `Template.check`; whether the fields fit shows with the first example."""
        kind = type(form).__name__
        if kind not in FORMS:
            raise ConfigError(
                f"{self.place}: task:{name} is of the form {kind}, which it cannot put"
            )

    def ask(self, example: Mapping[str, Any], form) -> Asked:
        """The texts of an example of `task`. The candidates are what the template says for each
        label, so no list of answers is needed.

        Raises:
          ConfigError: it does not put this task: its input tells the label, or it says the same for
            two of them.
          DataError: see `render`.
        """
        seed = str(example["id"])

        def parts(example) -> list[str]:
            found = self.render(published(example, form, task=self.task), seed=seed)
            if len(found) < 2 or not found[0]:
                raise DataError(f"{self.place}: says nothing for example {example['id']!r}")
            return found[:2]

        if type(form).__name__ in ("Score", "Spans"):
            known = example["label"] if "label" in example else example["answers"]
            unknown = known is None or (known == [] and not example["impossible"])
            text, target = parts({**example, "label": form.low} if known is None else example)
            return Asked(text, None if unknown else target, ())
        count = len(names_of(example, form))
        asked, candidates = zip(
            *(parts({**example, "label": label}) for label in range(count)), strict=True
        )
        if not all(candidates):
            raise DataError(f"{self.place}: says nothing for example {example['id']!r}")
        if len(set(asked)) > 1:
            raise ConfigError(
                f"{self.place}: what is asked changes with the label: this template is for another "
                f"use of the data than task:{self.task}"
            )
        if len(set(candidates)) < count:
            raise ConfigError(
                f"{self.place}: it says the same for two of the {count} answers of task:{self.task}"
            )
        target = None if example["label"] is None else candidates[example["label"]]
        return Asked(asked[0], target, candidates)


def read(path: str | Path, *, task: str = "") -> list[Jinja]:
    """All templates of a file, in its order.

    Args:
      task: the name of the task that they are to put.

    Raises:
      MissingInput: there is no such file.
      DataError: it is none of promptsource's, in one line with the place.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}") from None
    if len(data) > _BYTES:
        raise DataError(f"{path} has {len(data):,} bytes, at most {_BYTES:,} make sense")
    try:
        loader = _Loader(data)
        try:
            whole = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    if not (isinstance(whole, dict) and isinstance(whole.get("templates"), dict)):
        raise DataError(f"{path} has no templates: expected promptsource's YAML")
    return [_template(row, f"{path}:{key}", task) for key, row in whole["templates"].items()]


def choose(path: str | Path, name: str = "", *, task: str) -> list[Jinja]:
    """The template of that name, or without one all that put the original task.

    Raises:
      ConfigError: there is none; else as `read`.
    """
    every = read(path, task=task)
    if not name:
        found = [template for template in every if template.original]
        if not found:
            raise ConfigError(f"{path} has no template of the original task; name one, {path}:NAME")
        return found
    found = [template for template in every if template.name == name]
    if not found:
        names = [template.name for template in every]
        raise ConfigError(f"{path} has no template {name!r}; {nearest(name, names)}")
    return found


class _Loader(yaml.SafeLoader):
    """The safe loader, and tags of promptsource as dicts."""


def _mapping(loader: _Loader, node) -> dict:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _mapping)
_Loader.add_constructor("!TemplateMetadata", _mapping)


def _template(row, place: str, task: str) -> Jinja:
    row = row if isinstance(row, dict) else {}
    for field in ("name", "jinja"):
        if not isinstance(row.get(field), str):
            raise DataError(f"{place}: {field} is {str(row.get(field))[:40]!r}, expected text")
    name, body, answers = row["name"], row["jinja"], row.get("answer_choices")
    place = f"{place.rpartition(':')[0]}:{name}"
    if _SEPARATOR not in body:
        raise DataError(f"{place}: jinja has no ||| between what is asked and what is to be said")
    if answers is not None and not isinstance(answers, str):
        raise DataError(f"{place}: answer_choices is {str(answers)[:40]!r}, expected text")
    facts = row.get("metadata")
    original = isinstance(facts, dict) and facts.get("original_task") is True
    try:
        compiled = Compiled(body), Compiled(answers) if answers else None
    except Unfit as error:
        raise DataError(f"{place}: {error}") from None
    return Jinja(name, *compiled, original, place, task)


def _escaped(value):
    if isinstance(value, str):
        return value.replace(_SEPARATOR, _ESCAPED)
    if isinstance(value, dict):
        return {key: _escaped(one) for key, one in value.items()}
    return [_escaped(one) for one in value] if isinstance(value, list) else value


def _parts(text: str) -> list[str]:
    return [part.strip().replace(_ESCAPED, _SEPARATOR) for part in text.split(_SEPARATOR)]

"""What pretraining is worth at a size that a laptop trains: tasks learned from a small BERT and
from nothing, beside the answer that is right most often.

    python benchmarks/tasks.py --english runs/tiny_bert --korean runs/tiny_bert_ko \\
        sentences/polarity@data/rt-polarity klue/nli@data/klue,validation[:80%],validation[80%:]

A task is NAME@FOLDER, with the splits to learn from and to answer behind it where these are not
train and validation. Both learners have one architecture, one vocabulary, one rate and the same
batches; scores are those after the last step, no step is chosen. It prints the table of
docs/tasks.md, and every run stays in --out.
"""

import argparse
import contextlib
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from flaxlm import flags

SMALL = dict(dropout=0.1, attention_dropout=0.1)  # fine-tuning reads little text often


@dataclass(frozen=True)
class Plan:
    """How a task is learned here: the shipped experiment, passes over its examples, tokens."""

    experiment: str
    epochs: int = 3
    length: int = 64
    korean: bool = False


PLANS = {
    "sentences/polarity": Plan("tune_polarity"),
    "nli/med": Plan("tune_nli", epochs=5),
    "ner/wnut17": Plan("tune_ner", epochs=8),
    "squad/v2": Plan("tune_squad", length=128),
    "choice/commonsenseqa": Plan("tune_swag", length=48),
    "klue/nli": Plan("tune_nli", epochs=5, korean=True),
    "klue/sts": Plan("tune_sts", epochs=20, length=128, korean=True),
    "klue/ner": Plan("tune_ner", epochs=5, length=128, korean=True),
    "klue/dp": Plan("tune_dp", epochs=8, length=128, korean=True),
    "korean/korsts": Plan("tune_sts", epochs=5, korean=True),
    "korean/nsmc": Plan("tune_polarity", korean=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("tasks", nargs="+", metavar="NAME@FOLDER[,TRAIN,HELD_OUT]")
    parser.add_argument("--english", type=Path, help="a run of tiny_bert")
    parser.add_argument("--korean", type=Path, help="a run of tiny_bert_ko")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    flags.use()
    print("| task | learned from | answered | metric | commonest | from scratch | pretrained |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for wanted in options.tasks:
        print(_row(wanted, options), flush=True)


def _row(wanted: str, options) -> str:
    from flaxlm.tasks.base import find
    from flaxlm.tasks.baselines import majority

    uri, _, splits = wanted.partition(",")
    name, _, folder = uri.partition("@")
    learned, answered = splits.split(",") if splits else ("train", "validation")
    task, plan = find(name), PLANS[name]
    pretrained = options.korean if plan.korean else options.english
    train, held_out = task.read(learned, folder), task.read(answered, folder)
    common = task.metrics(majority(task, train, held_out), held_out)[task.main]
    cells = []
    for start in (None, pretrained):
        scores = [
            _score(
                task, plan, pretrained, uri, (learned, answered), len(train), start, seed, options
            )
            for seed in range(options.seeds)
        ]
        spread = (max(scores) - min(scores)) / 2
        cells.append(f"{statistics.mean(scores):.1f} ± {spread:.1f}")
    return (
        f"| `{name}` | {len(train):,} | {len(held_out):,} | {task.main} | {common:.1f} "
        f"| {cells[0]} | {cells[1]} |"
    )


def _score(task, plan, pretrained, uri, splits, examples, start, seed, options) -> float:
    """The task's metric after the last step of one training."""
    from flaxlm.experiment import load
    from flaxlm.train import train

    where = "scratch" if start is None else "pretrained"
    directory = options.out / f"{task.name.replace('/', '-')}-{where}-{seed}"
    result = directory / "evaluation.json"
    if not result.exists():
        loaded = load(plan.experiment)
        experiment = _experiment(
            loaded.experiment, task, plan, pretrained, uri, splits, examples, seed
        )
        starts = tuple(replace(one, path=str(start)) for one in experiment.start) if start else ()
        run = replace(experiment.run, directory=str(directory))
        experiment = replace(experiment, start=starts, run=run)
        directory.mkdir(parents=True, exist_ok=True)
        began = time.time()
        with (options.out / f"{directory.name}.log").open("w") as log:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                assert train(replace(loaded, experiment=experiment)) == 0, directory
        print(f"{directory.name}: {time.time() - began:.0f} s", flush=True)
    return json.loads(result.read_text())[task.main]


def _experiment(recipe, task, plan, pretrained, uri, splits, examples, seed):
    """The shipped experiment with the pretraining's sizes and vocabulary, on these files."""
    from flaxlm.lm import load

    sizes = load(pretrained).model.size
    length, batch = plan.length, recipe.data.batch
    sources = [replace(recipe.data.sources[0], uri=f"task:{uri}", split=split) for split in splits]
    (vocabulary,) = pretrained.glob("vocab.*")
    steps = plan.epochs * examples // batch
    return replace(
        recipe,
        model=_sized(recipe.model, sizes, task),
        objective=_objective(recipe.objective, task),
        data=replace(
            recipe.data,
            sources=(sources[0],),
            held_out=(sources[1],),
            vocabulary=replace(
                recipe.data.vocabulary,
                path=str(vocabulary),
                size=sizes.vocab,
                lowercase=not plan.korean,
            ),
            length=length,
        ),
        optimizer=replace(recipe.optimizer, schedule=_warmed(recipe.optimizer.schedule, steps)),
        run=replace(
            recipe.run,
            steps=steps,
            seed=seed,
            log_every=max(1, steps // 10),
            eval_every=0,
            save_every=steps,
            keep_best="",
        ),
    )


def _warmed(schedule, steps):
    return replace(schedule, warmup=steps // 10)


def _sized(model, sizes, task):
    size = replace(sizes, **SMALL)
    heads = _classes(task, "classes") if hasattr(model, "classes") else {}
    return model.clone(encoder=model.encoder.clone(size=size), **heads)


def _objective(objective, task):
    if hasattr(objective, "choices"):
        return replace(objective, choices=task.form.count)
    names = [name for name in ("classes", "tags") if hasattr(objective, name)]
    return replace(objective, **_classes(task, names[0])) if names else objective


def _classes(task, name: str) -> dict[str, int]:
    labels = getattr(task.form, "labels", ("score",))
    return {name: len(labels)}


if __name__ == "__main__":
    main()

"""What README and docs tell a reader to type is tried here, in the order of the page."""

import re
import shlex
from pathlib import Path

import pytest

from flaxlm import compile as compiles
from flaxlm import doctor, evaluate, generate, report, show, train
from flaxlm.aot import table, topologies
from flaxlm.aot.fit import place
from flaxlm.arguments import parse_argv
from flaxlm.convert import __main__ as convert
from flaxlm.data import __main__ as data
from flaxlm.look import __main__ as look
from flaxlm.overrides import resolve
from flaxlm.prompts import __main__ as prompts
from flaxlm.steer import __main__ as steer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
LOOKS_ONLY = {"--list", "--dry-run", "--print-config", "--help"}


def commands(page: str) -> list[list[str]]:
    """[module, argument, ...] of every `python -m flaxlm...` line in the bash blocks of a page."""
    found = []
    for block in re.findall(
        r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    ):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if len(words) > 2 and "python" in words[0] and words[1:2] == ["-m"]:
                    found.append(words[2:])
    return [words for words in found if words[0].startswith("flaxlm")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_of_a_page(page, data_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    monkeypatch.chdir(tmp_path)
    for module, *argv in commands(page):
        said = f"{page}: python -m {module} {shlex.join(argv)}"
        if module == "flaxlm.train" and not LOOKS_ONLY & set(argv):
            arguments = parse_argv(argv)  # a whole training run: its command line must be good
            if not arguments.experiment.endswith(".py"):
                resolve(arguments)
        elif module == "flaxlm.report":
            assert report.main(argv) == 66, said  # there is no such run here, and it says so
        elif module == "flaxlm.generate":
            assert generate.main(argv) == 66, said  # there is no such run here, and it says so
        elif module == "flaxlm.steer":
            assert steer.main(argv) == 66, said  # there is no such run here, and it says so
        elif module == "flaxlm.look":
            assert look.main(argv) == 66, said  # there is no such run here, and it says so
        elif module == "flaxlm.prompts":
            assert prompts.main(argv) == 66, said  # there is no such run here, and it says so
        elif module == "flaxlm.evaluate":
            assert evaluate.main(argv) == 66, said  # there is no such run here, and it says so
        elif module == "flaxlm.convert":
            assert convert.main(argv) == 66, said  # there is no such folder here, and it says so
        elif module == "flaxlm.compile":  # compiling takes minutes: its command line must be good
            arguments = parse_argv(argv, compiles.FLAGS)
            if arguments["--topology"]:
                slices = arguments.integer("--slices", default=1)
                topology = topologies.parse(arguments["--topology"], slices=slices)
                place(resolve(arguments).experiment, topology)
            else:
                assert compiles.main(argv) == 0, said
        elif module == "flaxlm.aot.table":
            parse_argv(argv, table.FLAGS)
        elif module == "flaxlm.doctor":  # it trains: its command line must be good
            parse_argv(argv, doctor.FLAGS)
        elif module == "flaxlm.harness":  # what follows is the harness's own
            assert argv[:3] == ["run", "--model", "flaxlm"], said
        elif module == "flaxlm.show":
            assert show.main(argv) == 0, said
        elif module == "flaxlm.data":
            needs = [
                word for word in argv if re.search(r"(wiki|books|petitions|corpus/|ko\b|/)", word)
            ]
            if not needs:
                assert data.main(argv) == 0, said
        else:
            assert train.main(argv) == 0, said
        capsys.readouterr()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if "://" not in target:
            assert (folder / target).exists(), f"{page}: {target}"


def test_the_readme_opens_with_two_commands():
    """One installs and trains, one installs and tests; .ci/run takes the second one from here."""
    lines = (ROOT / "README.md").read_text().splitlines()
    first, second = [line for line in lines if line.startswith("python3 -m venv")][:2]
    assert first.endswith("-m flaxlm.train --experiment t5_span") and "pip install" in first
    assert second.endswith("-m pytest -n 2") and "pip install" in second


def test_the_lineage_names_every_experiment():
    text = (ROOT / "docs" / "lineage.md").read_text()
    names = re.findall(r"`([a-z0-9_{},]+)`", text)
    listed = set()
    for name in names:
        match = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
        listed |= {match[1] + part + match[3] for part in match[2].split(",")} if match else {name}
    shipped = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert shipped <= listed, shipped - listed

"""Which checkpoints stay."""

import math
from types import SimpleNamespace

import pytest

from flaxlm.errors import ConfigError
from flaxlm.retention import Retention, Saved

HOUR = 3600.0


def history(*losses):
    """A checkpoint every 20 minutes; a loss of None was not evaluated."""
    return [
        Saved(step, step * HOUR / 3, {} if loss is None else {"loss": loss, "gain": -loss})
        for step, loss in enumerate(losses, start=1)
    ]


def test_the_newest():
    assert Retention(2).kept(history(1, 2, 3, 4)) == {3, 4}
    assert Retention(5).kept(reversed(history(1, 2))) == {1, 2}
    assert Retention(1).kept([]) == set()


def test_one_for_every_so_many_hours():
    assert Retention(1, hours=1).kept(history(*range(8))) == {1, 3, 6, 8}
    assert Retention(1, hours=2).kept(history(*range(8))) == {1, 6, 8}


def test_the_best():
    losses = [5.0, None, 2.0, math.nan, 3.0, -math.inf, 2.5]
    assert Retention(1, best="min loss").kept(history(*losses)) == {3, 7}
    assert Retention(1, best="max loss").kept(history(*losses)) == {1, 7}
    assert Retention(1, best="max gain").kept(history(*losses)) == {3, 7}
    assert Retention(1, best="min loss").kept(history(None, None)) == {2}


def test_what_is_on_disk_is_all_the_history_that_is_needed():
    """Deleting after every save leaves what deleting at the end would."""
    retention = Retention(2, hours=1, best="min loss")
    losses = [(7 * step) % 11 + step / 100 for step in range(40)]
    whole, disk = history(*losses), []
    for one in whole:
        disk.append(one)
        kept = retention.kept(disk)
        disk = [one for one in disk if one.step in kept]
    assert {one.step for one in disk} == retention.kept(whole)
    assert len(disk) < 20


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"newest": 0}, "run.keep=0: at least 1"),
        ({"newest": 1, "hours": -1.0}, "run.keep_hours=-1.0"),
        ({"newest": 1, "hours": math.nan}, "run.keep_hours=nan"),
        ({"newest": 1, "best": "loss"}, "'min' or 'max' and a held-out metric"),
        ({"newest": 1, "best": "least loss"}, "'min' or 'max' and a held-out metric"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, line):
    with pytest.raises(ConfigError, match=line):
        Retention(**fields)


def test_there_is_something_to_choose_from():
    def check(best, evaluated, saved):
        run = SimpleNamespace(eval_every=evaluated, save_every=saved)
        Retention(1, best=best).check(run, {"nll"})

    check("", 0, 0)
    check("min nll", 10, 20)
    check("max gain", 20, 10)
    with pytest.raises(ConfigError, match="no 'los'; did you mean loss"):
        check("min los", 10, 10)
    for evaluated, saved in [(0, 10), (10, 0), (10, 15)]:
        with pytest.raises(ConfigError, match="multiples of one another"):
            check("min loss", evaluated, saved)

"""A run that is killed is the run that was not, bit for bit: parameters, optimizer, losses.

Here with one kill. With twenty of them, each way (ten minutes on two idle cores):

    FLAXLM_KILLS=20 pytest tests/test_resume.py
"""

import os
import time

import pytest

from tests import equal, kills, runs
from tests.test_distributed import start as start_together

STEPS, SAVE_EVERY = 60, 3
KILLS = int(os.environ.get("FLAXLM_KILLS", "1"))
MESHES = {
    "one device": [],
    "eight devices": ["--mesh.data=1", "--mesh.fsdp=4", "--mesh.tensor=2"],
    "two processes": ["--mesh.data=2", "--mesh.fsdp=2"],
}


def starter(where, argv, cache):
    """() -> the processes of a run."""
    if where == "two processes":
        # One that is left alone while it starts need not wait five minutes for the other.
        patience = {"FLAXLM_START_TIMEOUT": "40"}
        return lambda: start_together(argv, cache, count=2, devices=2, **patience)
    return lambda: [runs.start(argv, cache, devices=8 if where == "eight devices" else 1)]


@pytest.mark.slow
@pytest.mark.faults(1)
@pytest.mark.parametrize("where", MESHES)
def test_a_run_that_is_killed_is_the_straight_run(
    where, text_file, data_cache, tmp_path, fault_row
):
    def start(name):
        numbers = [f"--run.steps={STEPS}", f"--run.save_every={SAVE_EVERY}", *MESHES[where]]
        argv = runs.arguments(text_file, tmp_path / name, *numbers)
        return starter(where, argv, data_cache)

    began = time.time()
    kills.run(start("straight"))
    opening = runs.metrics(tmp_path / "straight")[0]["time"] - began
    found = kills.run_killed(
        start("killed"), tmp_path / "killed", steps=STEPS, kills=KILLS, opening=opening
    )
    print("\n".join(map(str, found)))
    kills.assert_little_was_lost(found, save_every=SAVE_EVERY)
    straight, killed = (
        equal.fingerprint(tmp_path / name, STEPS) for name in ("straight", "killed")
    )
    assert killed == straight
    fault_row(
        injected=f"SIGKILL at random moments of a run of {STEPS} steps on {where}, "
        "the same command again",
        happened="parameters, optimizer and losses are those of the run that was not killed, bit "
        "for bit; every start goes on from the newest complete checkpoint",
        exit_code=None,
        lost="the steps since the last save",
    )

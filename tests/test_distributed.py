"""Two real processes joined by jax.distributed train as one does, and one goes on where two
stopped.
"""

import socket

import numpy as np
import pytest

from tests import runs


def pair(argv, cache, *, devices):
    """Start two processes of `devices` devices each; their outputs when both have ended well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    triple = {"FLAXLM_COORDINATOR": f"127.0.0.1:{port}", "FLAXLM_NUM_PROCESSES": "2"}
    processes = [
        runs.start(argv, cache, devices=devices, FLAXLM_PROCESS_ID=str(i), **triple)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


@pytest.mark.slow
def test_two_processes_are_one_run(text_file, data_cache, tmp_path):
    mesh = ["--mesh.data=2", "--mesh.fsdp=2", "--run.save_every=3"]
    one = runs.start(
        runs.arguments(text_file, tmp_path / "one", *mesh, "--run.steps=10"), data_cache, devices=4
    )
    output, _ = one.communicate(timeout=300)
    assert one.returncode == 0, output

    argv = runs.arguments(text_file, tmp_path / "two", *mesh)
    outputs = pair([*argv, "--run.steps=6"], data_cache, devices=2)
    assert "2 process(es)" in outputs[0] and "step 6/6" in outputs[0]
    assert "step 6/6" not in outputs[1], "the second process is silent"

    alone = runs.start([*argv, "--run.steps=10"], data_cache, devices=4)
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0 and "resumed after step 6" in output, output

    expected = [line["loss"] for line in runs.metrics(tmp_path / "one")]
    found = [line["loss"] for line in runs.metrics(tmp_path / "two")]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    one, two = (
        {line["step"]: line["nll"] for line in runs.metrics(tmp_path / name, "eval")}
        for name in ("one", "two")
    )
    assert set(one) == {4, 8, 10} and set(two) == {4, 6, 8, 10}
    np.testing.assert_allclose([two[step] for step in one], list(one.values()), atol=2e-5)

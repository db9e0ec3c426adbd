"""safetensors files: equal to the package's, and no header is believed."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxlm import safetensors
from flaxlm.errors import DataError, MissingInput, UserError


def some_tensors(*, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    dtypes = [
        np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.bool_, np.int8, np.uint8,
        np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64,
    ]  # fmt: skip
    tensors = {
        f"layer.{n}.{np.dtype(d).name}": rng.integers(0, 99, (3, n)).astype(d)
        for d in dtypes
        for n in (0, 1, 5)
    }
    tensors["a scalar, \n and a name with ü and \x1f"] = np.array(7, np.float32)
    tensors["transposed"] = rng.standard_normal((4, 6)).astype(np.float32).T
    return tensors


def file_of(header, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_what_is_written_is_read(tmp_path):
    tensors = some_tensors()
    safetensors.write(tmp_path / "a", tensors)
    found = safetensors.read(tmp_path / "a")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert not array.size or not found[name].flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_written_as_the_package_writes(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="needs the parity extra: safetensors")
    tensors = {name: np.ascontiguousarray(x) for name, x in some_tensors().items()}
    tensors["a scalar, \n and a name with ü and \x1f"] = np.array(7, np.float32)
    package.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    safetensors.write(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, array in package.load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(array, tensors[name])


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(DataError, match="'x' is complex64"):
        safetensors.write(tmp_path / "a", {"x": np.zeros(2, np.complex64)})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "0 bytes"),
        (b"\x08\x00\x00", "cut off"),
        (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes in a file of 10"),
        ((99_999_999).to_bytes(8, "little") + b"{}", "cut off"),
        (file_of(b"[1]"), "is a list"),
        (file_of(b"{nonsense"), "not JSON"),
        (file_of(b"\xff\xfe"), "not JSON"),
        (file_of(b"[" * 100_000), "not JSON"),
        (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
        (file_of(b'{"a": {}, "a": {}}'), "'a' stands twice"),
        (file_of({"__metadata__": {"a": 1}}), "text alone"),
        (file_of({"__metadata__": []}), "text alone"),
        (file_of({"a": 5}), "'a' must have dtype"),
        (file_of({"a": ONE | {"more": 1}}, bytes(8)), "'a' must have dtype"),
        (file_of({"a": ONE | {"dtype": "F8_E4M3"}}, bytes(8)), "F8_E4M3.*known are"),
        (file_of({"a": ONE | {"dtype": []}}, bytes(8)), "dtype"),
        (file_of({"a": ONE | {"shape": [-2]}}, bytes(8)), "shape"),
        (file_of({"a": ONE | {"shape": [True, 2]}}, bytes(8)), "shape"),
        (file_of({"a": ONE | {"shape": [2.0]}}, bytes(8)), "shape"),
        (file_of({"a": ONE | {"shape": [1] * 33}}, bytes(8)), "shape"),
        (file_of({"a": ONE | {"shape": [2**62, 2**62]}}, bytes(8)), "larger than any memory"),
        (file_of({"a": ONE | {"shape": [2**60]}}, bytes(8)), "takes 4611686018427387904 bytes"),
        (
            file_of({"a": ONE | {"shape": [0, 2**62], "data_offsets": [0, 0]}}),
            "larger than any memory",
        ),
        (file_of({"a": ONE | {"data_offsets": [0, 12]}}, bytes(12)), "takes 8 bytes.*are 12"),
        (file_of({"a": ONE | {"data_offsets": [8, 0]}}, bytes(8)), "takes 8 bytes"),
        (file_of({"a": ONE | {"data_offsets": [0]}}, bytes(8)), "two numbers"),
        (file_of({"a": ONE}, bytes(4)), "cut off"),
        (file_of({"a": ONE}, bytes(9)), "the rest belongs to no tensor"),
        (file_of({"a": ONE, "b": ONE}, bytes(16)), "'b' begins at byte 0, not 8: overlaps"),
        (file_of({"a": ONE | {"data_offsets": [4, 12]}}, bytes(12)), "leaves a gap"),
    ],
)
def test_a_header_is_not_believed(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as error:
        safetensors.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert peak < 2**23


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match=r"none\.safetensors: No such file"):
        safetensors.read(tmp_path / "none.safetensors")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_damage_is_an_error_of_one_line_or_none(tmp_path, data):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.int8)}
    path = tmp_path / "fuzz.safetensors"
    safetensors.write(path, tensors)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "delete", "insert", "cut"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "delete" and len(content) > 1:
            del content[at]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=4))
        else:
            del content[max(at, 1) :]
    path.unlink()
    path.write_bytes(bytes(content))
    try:
        found = safetensors.read(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert sum(array.nbytes for array in found.values()) <= len(content)
        for array in found.values():
            array.tobytes()


def shards(folder, *, index: dict | None = None):
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.arange(2, dtype=np.float16)}
    places = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, shard in places.items():
        safetensors.write(folder / shard, {name: tensors[name]})
    text = json.dumps({"metadata": {}, "weight_map": places} if index is None else index)
    (folder / safetensors.INDEX).write_text(text)
    return tensors


def test_shards_are_put_together(tmp_path):
    tensors = shards(tmp_path)
    found = safetensors.read_folder(tmp_path)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "places, message",
    [
        ({"a": "../model-1.safetensors"}, "not the name of a .safetensors file"),
        ({"a": "model-1.bin"}, "not the name of a .safetensors file"),
        ({"a": 1}, "weight_map"),
        ({"c": "model-1.safetensors"}, "'c' is missing"),
        ({"a": "model-1.safetensors", "c": "model-2.safetensors"}, "'c' is missing"),
        ({"a": "model-3.safetensors"}, "No such file"),
    ],
)
def test_an_index_is_not_believed(tmp_path, places, message):
    shards(tmp_path, index={"weight_map": places})
    with pytest.raises(UserError, match=message):
        safetensors.read_folder(tmp_path)


def test_a_tensor_that_the_index_does_not_name(tmp_path):
    shards(tmp_path)
    both = {"a": np.zeros(3, np.float32), "x": np.zeros(1, np.float32)}
    safetensors.write(tmp_path / "model-1.safetensors", both)
    with pytest.raises(DataError, match="'x' is not in"):
        safetensors.read_folder(tmp_path)

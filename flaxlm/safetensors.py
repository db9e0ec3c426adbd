"""safetensors files: read without trusting them, written as the safetensors package writes them.

A file is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape,
data_offsets}}, and the bytes of the tensors one after the other. A reader that believes the header
reads outside its buffer; this one checks every number against the file before it hands out an
array. Arrays are views of the memory-mapped file: nothing is read until it is used.
"""

import json
import math
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from flaxlm.data.files import write_whole
from flaxlm.errors import DataError, MissingInput

NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST = 100_000_000  # bytes of a header, the limit of the safetensors package

# In the order in which the package lays the tensors of a file, last first.
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read(path: Path) -> dict[str, np.ndarray]:
    """{name: read-only array} of one file, memory-mapped.

    Raises:
      MissingInput: there is no such file.
      DataError: it is not a safetensors file, or its header and its size do not agree.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise MissingInput(f"{path}: this is no file")
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header, start = _header(path, file, size)
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}") from error
    entries = _checked(path, header, size - start)
    return {
        name: np.frombuffer(content, dtype, math.prod(shape), start + begin).reshape(shape)
        if math.prod(shape)
        else np.zeros(shape, dtype)
        for name, (dtype, shape, begin) in entries.items()
    }


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder: `model.safetensors`, or the shards that its index names.

    Raises:
      MissingInput: there is neither, or a shard is missing.
      DataError: see `read`; or index and shards do not agree.
    """
    if (folder / NAME).is_file() or not (folder / INDEX).is_file():
        return read(folder / NAME)
    index = folder / INDEX
    places = _json(index, index.read_bytes())
    places = places.get("weight_map") if isinstance(places, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise DataError(f"{index}: weight_map must be an object {{tensor: file}}")
    shards = {}
    for shard in sorted(set(places.values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise DataError(f"{index}: {shard!r} is not the name of a .safetensors file beside it")
        shards[shard] = read(folder / shard)
    for name, shard in places.items():
        if name not in shards[shard]:
            raise DataError(
                f"{folder / shard}: tensor {name!r} is missing, {INDEX} says it is here"
            )
    for shard, tensors in shards.items():
        for name in tensors:
            if places.get(name) != shard:
                raise DataError(f"{folder / shard}: tensor {name!r} is not in {INDEX}")
    return {name: shards[shard][name] for name, shard in places.items()}


def write(path: Path, tensors: Mapping[str, np.ndarray], *, format: str = "pt") -> None:
    """Write one file, whole or not at all; byte for byte what the safetensors package writes.

    Args:
      format: of its metadata; transformers reads files whose format is "pt" alone.

    Raises:
      StorageError: it cannot be written.
      DataError: a tensor is of a dtype that the format lacks.
    """
    arrays = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor, order="C")
        if array.dtype not in _NAMES:
            raise DataError(f"tensor {name!r} is {array.dtype}, which safetensors cannot hold")
        arrays[name] = array
    order = list(_DTYPES.values())
    names = sorted(arrays, key=lambda name: (-order.index(arrays[name].dtype), name.encode()))
    header: dict = {"__metadata__": {"format": format}}
    end = 0
    for name in names:
        array, begin = arrays[name], end
        end += array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def content(file) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)

    write_whole(path, content)


def _header(path: Path, file, size: int) -> tuple[dict, int]:
    """The header as JSON values, and where the tensors begin."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST):
        what = "the file is cut off, or it is no safetensors file"
        raise DataError(f"{path}: a header of {length} bytes in a file of {size} bytes: {what}")
    return _json(path, file.read(length)), 8 + length


def _json(path: Path, text: bytes):
    """JSON in which no name stands twice."""

    def pairs(items):
        found = dict(items)
        if len(found) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: {twice!r} stands twice in the header")
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the header is not JSON ({error})") from None


def _checked(path: Path, header, size: int) -> dict[str, tuple[np.dtype, tuple, int]]:
    """{name: (dtype, shape, first byte)} of a header whose tensors fill `size` bytes exactly."""
    if not isinstance(header, dict):
        raise DataError(f"{path}: the header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not _all(metadata, dict, lambda item: isinstance(item[1], str)):
        raise DataError(f"{path}: __metadata__ must hold text alone")
    entries = {}
    for name, entry in header.items():
        where = f"{path}: tensor {name!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise DataError(f"{where} must have dtype, shape and data_offsets, nothing else")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise DataError(f"{where} has dtype {entry['dtype']!r}; known are {known}")
        if not _all(shape, list, _natural) or len(shape) > 32:
            raise DataError(f"{where} has shape {_short(shape)}: at most 32 numbers from 0 up")
        if not _all(offsets, list, _natural) or len(offsets) != 2:
            raise DataError(f"{where} has data_offsets {_short(offsets)}: two numbers, from 0 up")
        dtype = _DTYPES[entry["dtype"]]
        if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
            # Of a dim of 0 the others may be anything to the file, not to numpy.
            raise DataError(f"{where} has shape {_short(shape)}: larger than any memory")
        needed = math.prod(shape) * dtype.itemsize
        if offsets[1] - offsets[0] != needed:
            raise DataError(
                f"{where} {entry['dtype']} {shape} takes {needed} bytes, data_offsets {offsets} "
                f"are {offsets[1] - offsets[0]}"
            )
        entries[name] = (dtype, tuple(shape), offsets[0], offsets[1])
    end = 0
    for name, (*_, first, last) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if first != end:
            what = "overlaps the tensor before it" if first < end else "leaves a gap before it"
            raise DataError(f"{path}: tensor {name!r} begins at byte {first}, not {end}: {what}")
        end = last
    if end != size:
        what = "the file is cut off" if end > size else "the rest belongs to no tensor"
        raise DataError(f"{path}: its tensors take {end} bytes, the file has {size}: {what}")
    return {name: entry[:3] for name, entry in entries.items()}


def _all(value, kind: type, check: Callable) -> bool:
    if not isinstance(value, kind):
        return False
    return all(check(item) for item in (value.items() if kind is dict else value))


def _natural(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

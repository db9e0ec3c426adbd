"""Texts of TFDS data sets prepared on this machine: no TensorFlow, no network."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxlm.data.files import digest
from flaxlm.data.formats import Decoder
from flaxlm.errors import ConfigError, DataError, MissingInput, Refused

_BLOCK = 64  # records per read


def texts(name: str, split: str, field: str, decode: Decoder) -> Iterator[str]:
    """The field `field` of every record of a split, in file order.

    Args:
      name: "c4/en", "c4/en:3.0.1", or the folder that holds a prepared data set's
        dataset_info.json.
      split: a TFDS split, slices such as "train[:10%]" included.
      field: a text feature.
      decode: what becomes of bytes that are not UTF-8.

    Raises:
      MissingInput: not prepared here, or in a format that needs TensorFlow.
      ConfigError: no such split.
      DataError: no such field, or bytes that are not UTF-8.
    """
    builder = _builder(name)
    if field not in builder.info.features:
        known = ", ".join(sorted(builder.info.features))
        raise DataError(f"tfds:{name} has no field {field!r}; there are: {known}")
    for at, record in enumerate(_records(builder, name, split)):
        value = record[field]
        if not isinstance(value, bytes):
            raise DataError(f"tfds:{name}: field {field!r} holds {type(value).__name__}, not text")
        if (text := decode(value, f"tfds:{name}:{split}:{at}")) is not None:
            yield text


def records(name: str, split: str) -> Iterator[dict[str, Any]]:
    """The records of a split, in file order: texts are bytes, labels are indices.

    Raises:
      MissingInput: not prepared here, or in a format that needs TensorFlow.
      ConfigError: no such split.
    """
    return _records(_builder(name), name, split)


def _records(builder, name: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        source = builder.as_data_source(split=split)
    except ValueError as error:
        if split.partition("[")[0] in builder.info.splits:
            raise ConfigError(f"tfds:{name}: split {split!r}: {error}") from error
        known = ", ".join(builder.info.splits)
        raise ConfigError(f"tfds:{name} has no split {split!r}; there are: {known}") from error
    for start in range(0, len(source), _BLOCK):
        yield from source.__getitems__(range(start, min(start + _BLOCK, len(source))))


def fingerprint(name: str) -> str:
    """Hash of the data set's own description: version, splits, record counts, bytes."""
    return digest(Path(os.fspath(_builder(name).data_dir)) / "dataset_info.json")


def _check_features(path: Path) -> None:
    """Refuse a data set whose description names code: TFDS imports the modules of the classes that
    a features.json names, and the current folder is among the places it imports from.

    Raises:
      Refused: naming the class.
      DataError: it is not JSON.
    """

    def check(found: dict) -> dict:
        for key in ("pythonClassName", "python_class_name", "type"):
            kind = found[key] if key in found else None
            if (
                isinstance(kind, str)
                and "." in kind
                and not kind.startswith("tensorflow_datasets.")
            ):
                raise Refused(f"{path}: {kind!r} is not of TFDS itself, its module is not imported")
        return found

    try:
        json.loads(path.read_bytes(), object_hook=check)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None


def _builder(name: str):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    help_text = (
        f"Prepare it with `tfds build {name} --file_format=array_record` or "
        f"`tfds.builder({name!r}, file_format='array_record').download_and_prepare()`, "
        "or give text:, jsonl: or parquet: files instead"
    )
    root = os.environ.get("TFDS_DATA_DIR")
    folder = Path(os.path.expanduser(name))
    is_folder = (folder / "dataset_info.json").exists()
    place = Path(os.path.expanduser(root or "~/tensorflow_datasets")) / re.split("[/:]", name)[0]
    if is_folder or name[:1].isalnum():  # any other is no name to TFDS
        for path in (folder if is_folder else place).glob("**/features.json"):
            _check_features(path)
    try:
        if is_folder:
            builder = tfds.builder_from_directory(folder)
        else:
            # Looks at what is on disk: no data set's code is imported, nothing is downloaded.
            builder = read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.DatasetNotFoundError as error:
        where = root or "~/tensorflow_datasets"
        raise MissingInput(
            f"tfds:{name} is not prepared in {where} (TFDS_DATA_DIR). {help_text}"
        ) from error
    except ValueError as error:  # not a name TFDS could have given, or the same name in two folders
        raise ConfigError(f"tfds:{name}: {str(error).splitlines()[0]}") from error
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "parquet"):
        raise MissingInput(
            f"tfds:{name} is stored as {file_format}, which needs TensorFlow to read. {help_text}"
        )
    return builder

"""Texts of TFDS data sets prepared on this machine: no TensorFlow, no network."""

import os
from collections.abc import Iterator
from pathlib import Path

from flaxlm.data.files import digest
from flaxlm.errors import ConfigError, DataError, MissingInput

_BLOCK = 64  # records per read


def texts(name: str, split: str, field: str) -> Iterator[str]:
    """The field `field` of every record of a split, in file order.

    Args:
      name: "c4/en", "c4/en:3.0.1", or the folder that holds a prepared data set's
        dataset_info.json.
      split: a TFDS split, slices such as "train[:10%]" included.
      field: a text feature.

    Raises:
      MissingInput: not prepared here, or in a format that needs TensorFlow.
      ConfigError: no such split.
      DataError: no such field, or bytes that are not UTF-8.
    """
    builder = _builder(name)
    if field not in builder.info.features:
        known = ", ".join(sorted(builder.info.features))
        raise DataError(f"tfds:{name} has no field {field!r}; there are: {known}")
    try:
        source = builder.as_data_source(split=split)
    except ValueError as error:
        if split.partition("[")[0] in builder.info.splits:
            raise ConfigError(f"tfds:{name}: split {split!r}: {error}") from error
        known = ", ".join(builder.info.splits)
        raise ConfigError(f"tfds:{name} has no split {split!r}; there are: {known}") from error
    for start in range(0, len(source), _BLOCK):
        keys = range(start, min(start + _BLOCK, len(source)))
        for at, record in zip(keys, source.__getitems__(keys), strict=True):
            value = record[field]
            if not isinstance(value, bytes):
                raise DataError(
                    f"tfds:{name}: field {field!r} holds {type(value).__name__}, not text"
                )
            try:
                yield value.decode()
            except UnicodeDecodeError as error:
                byte = f"byte 0x{value[error.start]:02x} is not UTF-8"
                raise DataError(f"tfds:{name}:{split}:{at}:{error.start + 1}: {byte}") from None


def fingerprint(name: str) -> str:
    """Hash of the data set's own description: version, splits, record counts, bytes."""
    return digest(Path(os.fspath(_builder(name).data_dir)) / "dataset_info.json")


def _builder(name: str):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    help_text = (
        f"Prepare it with `tfds build {name} --file_format=array_record` or "
        f"`tfds.builder({name!r}, file_format='array_record').download_and_prepare()`, "
        "or give text:, jsonl: or parquet: files instead"
    )
    root = os.environ.get("TFDS_DATA_DIR")
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_info.json").exists():
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

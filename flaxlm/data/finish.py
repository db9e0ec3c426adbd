"""The end of a preparation: chunks become shards, index, metadata and manifest of a corpus."""

import json
import os
from pathlib import Path

import numpy as np

from flaxlm.data.chunk import SPLITS, lengths_path, shard_path
from flaxlm.data.corpus import SENTENCES, token_dtype
from flaxlm.data.corpus_files import FORMAT, MANIFEST, checksum
from flaxlm.data.files import digest, key, write_whole
from flaxlm.data.vocab import Vocab

DATASET = "flaxlm_corpus"


def count(chunks: list[dict], split: str, what: str = "documents") -> int:
    """Sum over chunks of "documents", "tokens", "sentences" or "unknown" of a split."""
    return sum(chunk["splits"][split][what] for chunk in chunks)


def finish(work: Path, vocab: Vocab) -> None:
    """Name the shards, write index, TFDS metadata and, last, the manifest. Can be interrupted and
    repeated.
    """
    plan = json.loads((work / "plan.json").read_bytes())
    chunks = plan["chunks"]
    dtype = token_dtype(vocab.pieces)
    files: dict[str, dict] = {}
    splits: dict[str, dict] = {}
    for split in SPLITS:
        numbers = [n for n, chunk in enumerate(chunks) if chunk["splits"][split]["documents"]]
        if not numbers:
            continue
        shards = []
        for at, number in enumerate(numbers):
            facts = chunks[number]["splits"][split]
            name = f"{DATASET}-{split}.array_record-{at:05d}-of-{len(numbers):05d}"
            if (made := shard_path(work, number, split)).exists():
                os.replace(made, work / name)
            files[name] = {
                "bytes": facts["bytes"],
                "sha256": facts["sha256"],
                "records": facts["documents"],
            }
            shards.append(name)
        indexes = {
            "documents": f"{split}.offsets.npy", "sentences": f"{split}.sentences.npy"
        }  # fmt: skip
        for what, name in indexes.items():
            parts = [lengths_path(shard_path(work, n, split), what) for n in numbers]
            _write_offsets(parts, work / name)
            files[name] = _facts(work / name)
        splits[split] = {
            "documents": count(chunks, split),
            "tokens": count(chunks, split, "tokens"),
            "sentences": count(chunks, split, "sentences"),
            "unknown": count(chunks, split, "unknown"),
            "offsets": indexes["documents"],
            "sentence_offsets": indexes["sentences"],
            "shards": shards,
            "fingerprint": key([files[name]["sha256"] for name in [*shards, *indexes.values()]]),
        }
    write_whole(work / "vocab.model", vocab.model)
    _write_tfds_metadata(work, splits, files, dtype)
    for name in ("vocab.model", "dataset_info.json", "features.json"):
        files[name] = _facts(work / name)
    manifest = {
        "format": FORMAT,
        "dtype": dtype.str,
        "vocab": {"sha256": vocab.sha256, "pieces": vocab.pieces},
        "splits": splits,
        "sources": [
            source | {"counts": counts}
            for source, counts in zip(plan["settings"]["sources"], plan["counts"], strict=True)
        ],
        "without_tokens": sum(chunk["without_tokens"] for chunk in chunks),
        "settings": plan["settings"],
        "files": files,
    }
    manifest["checksum"] = checksum(manifest)
    write_whole(work / MANIFEST, json.dumps(manifest, indent=1).encode())


def _facts(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def _write_offsets(parts: list[Path], path: Path) -> None:
    """From lengths, a file per chunk, to the places where each of these things begins."""
    lengths = [np.load(part, mmap_mode="r") for part in parts]
    header = {"descr": "<i8", "fortran_order": False, "shape": (sum(map(len, lengths)) + 1,)}

    def write(file):  # chunk by chunk: the whole index of a large corpus is gigabytes
        np.lib.format.write_array_header_1_0(file, header)
        total = 0
        file.write(np.zeros(1, "<i8").tobytes())
        for part in lengths:
            ends = np.cumsum(part, dtype=np.int64) + total
            total = int(ends[-1])
            file.write(ends.astype("<i8").tobytes())

    write_whole(path, write)


def _write_tfds_metadata(work: Path, splits: dict, files: dict, dtype: np.dtype) -> None:
    """dataset_info.json and features.json: with them the folder is a TFDS data set."""
    import tensorflow_datasets as tfds

    def ids(kind, doc):
        return tfds.features.Tensor(shape=(None,), dtype=kind.type, encoding="bytes", doc=doc)

    features = tfds.features.FeaturesDict(
        {
            "tokens": ids(dtype, "token ids of a document"),
            "sentences": ids(SENTENCES, "where its sentences start, in tokens"),
        }
    )
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[files[name]["records"] for name in facts["shards"]],
            num_bytes=sum(files[name]["bytes"] for name in facts["shards"]),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=work,
                dataset_name=DATASET,
                split=split,
                filetype_suffix="array_record",
                template=template,
            ),
        )
        for split, facts in splits.items()
    ]
    # check_data reads the records with TensorFlow, which nobody needs here.
    tfds.folder_dataset.write_metadata(
        data_dir=work,
        features=features,
        split_infos=infos,
        description="Tokenised text",
        check_data=False,
    )

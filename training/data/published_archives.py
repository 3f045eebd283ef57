"""Reads MNIST, Fashion-MNIST, KMNIST and CIFAR-10 from their published archives.

Holds the URLs and the published MD5 digests. A file is taken from the user's data folder where it
is present, else downloaded; both are verified before use. Knows only the train and test splits that
the archives have.
"""

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pooch
from numpy.typing import NDArray

from model.errors import DataError

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

CIFAR_SIZES = (50_000, 10_000)
"""Training and test images of the complete CIFAR-10."""

_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR_FOLDERS = ("cifar-10", "cifar-10-batches-bin", "cifar-10-subset")
_CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the pixels

_IDX_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "kmnist": "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
}
# Published MD5 of train images, train labels, t10k images, t10k labels.
_IDX_MD5 = {
    "mnist": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion-mnist": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "kmnist": (
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
}
_IDX_IMAGES_MAGIC, _IDX_LABELS_MAGIC = 0x803, 0x801


def read_idx(data: str, split: str, data_dir: Path | None, cache_dir: Path) -> Arrays:
    """Read one split ("train" or "t10k") of mnist, fashion-mnist or kmnist.

    Returns:
        images uint8 [N, 1, H, W] and labels int64 [N].

    Raises:
        DataError: a file cannot be downloaded, or differs from its published digest.
    """
    digests = _IDX_MD5[data][:2] if split == "train" else _IDX_MD5[data][2:]
    files = (f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz")
    images, labels = (
        gzip.decompress(
            _read_verified(data, name, _IDX_URLS[data] + name, md5, data_dir, cache_dir)
        )
        for name, md5 in zip(files, digests, strict=True)
    )
    return _idx_images(images), _idx_labels(labels)


def read_cifar(data_dir: Path | None, cache_dir: Path) -> tuple[Arrays, Arrays]:
    """Read CIFAR-10's binary layout.

    Unpacked `data_batch_*.bin` and `test_batch.bin` in the data folder are read without a check of
    their digests, so that a subset of CIFAR-10 can be used.

    Returns:
        (train, test), each images uint8 [N, 3, 32, 32] and labels int64 [N].

    Raises:
        DataError: the archive cannot be downloaded, differs from its published digest, or a file
            does not have the binary layout.
    """
    for name in _CIFAR_FOLDERS if data_dir else ():
        folder = (data_dir or Path()) / name
        batches = sorted(folder.glob("data_batch_*.bin"))
        if batches and (folder / "test_batch.bin").is_file():
            train = _cifar_records(b"".join(batch.read_bytes() for batch in batches), folder)
            return train, _cifar_records((folder / "test_batch.bin").read_bytes(), folder)
    name = _CIFAR_URL.rsplit("/", 1)[1]
    archive = _locate_verified("cifar-10", name, _CIFAR_URL, _CIFAR_MD5, data_dir, cache_dir)
    with tarfile.open(archive) as tar:
        members = {Path(member.name).name: member for member in tar if member.isfile()}
        blobs = {
            name: file.read()
            for name, member in sorted(members.items())
            if name.endswith(".bin") and (file := tar.extractfile(member))
        }
    test = blobs.pop("test_batch.bin")
    return _cifar_records(b"".join(blobs.values()), archive), _cifar_records(test, archive)


def _read_verified(
    data: str, name: str, url: str, md5: str, data_dir: Path | None, cache_dir: Path
) -> bytes:
    return _locate_verified(data, name, url, md5, data_dir, cache_dir).read_bytes()


def _locate_verified(
    data: str, name: str, url: str, md5: str, data_dir: Path | None, cache_dir: Path
) -> Path:
    """Return the path of the file on disk, or download it; check its MD5 in both cases."""
    if data_dir is not None and (data_dir / data / name).is_file():
        present = data_dir / data / name
        if pooch.file_hash(str(present), alg="md5") != md5:
            raise DataError(f"{present} differs from its published MD5; copy it again.")
        return present
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=cache_dir / data))
    except Exception as error:  # pooch raises the errors of its transport unchanged
        raise DataError(
            f"Cannot download {url} ({type(error).__name__}); check the network, or put the file "
            f"into a folder {data}/ and name its parent with --data-dir."
        ) from None


def _idx_images(raw: bytes) -> NDArray[np.uint8]:
    magic, count, height, width = np.frombuffer(raw, ">i4", 4)
    if magic != _IDX_IMAGES_MAGIC:
        raise DataError("An IDX image file has another magic number; download it again.")
    return np.frombuffer(raw, np.uint8, offset=16).reshape(count, 1, height, width).copy()


def _idx_labels(raw: bytes) -> NDArray[np.int64]:
    magic, _count = np.frombuffer(raw, ">i4", 2)
    if magic != _IDX_LABELS_MAGIC:
        raise DataError("An IDX label file has another magic number; download it again.")
    return np.frombuffer(raw, np.uint8, offset=8).astype(np.int64)


def _cifar_records(raw: bytes, source: Path) -> Arrays:
    if not raw or len(raw) % _CIFAR_RECORD_BYTES:
        raise DataError(f"{source} is not of CIFAR-10's binary layout; download it again.")
    records = np.frombuffer(raw, np.uint8).reshape(-1, _CIFAR_RECORD_BYTES)
    if records[:, 0].max() > 9:
        raise DataError(f"{source} has a label above 9; download it again.")
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].astype(np.int64)

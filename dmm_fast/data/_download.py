"""Download of the four polyphonic data sets that Pyro hosts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.request import urlopen

from dmm_fast import check
from dmm_fast._io import atomic_write
from dmm_fast.data._piano_rolls import read_notes

URL = "https://github.com/pyro-ppl/datasets/raw/{commit}/polyphonic/{name}.pickle"
COMMIT = "a32915c210878a1d4a36adcdc7d3448f89d5e4ee"
BLOBS = {
    "jsb_chorales": "3b69144b974da0d34eb62d2de6faf74a3db44c57",
    "piano_midi": "4cefeae9f30c9313182f49062299832eb2e9cb6c",
    "muse_data": "ef8ef2c01ce94ccc74f247eec1ca61d10b4e00de",
    "nottingham": "97268091279ec2844cf2fed04cee1f47db7b4a5d",
}
"""The git blob id of each file in that commit: SHA-1 of ``blob <size>``, a zero byte and the content."""
_CHUNK = 1 << 16
_DIGEST = re.compile("[0-9a-fA-F]{64}")


def download(
    name: str,
    directory: str | Path,
    *,
    progress: bool = True,
    sha256: str | None = None,
    max_bytes: int = 256 << 20,
    opener: Callable[[str], Any] | None = None,
) -> Path:
    """Download a data set to ``<directory>/<name>.pickle`` for :func:`dmm_fast.data.load`.

    The URL names one commit of Pyro's data repository, and the content must have the git blob id that
    this commit records for the file. A git blob id is a SHA-1: it detects corruption and changed files, but
    not an adversary who can construct collisions. Pass ``sha256`` for a stronger check, which then replaces
    it. The file is also parsed once, by a reader that executes nothing, and only then renamed: a failed
    download leaves nothing behind and an existing file untouched. A file that already exists and passes
    the check is not downloaded again.

    Args:
        name: ``jsb_chorales``, ``piano_midi``, ``muse_data`` or ``nottingham``.
        directory: the destination folder, created if missing.
        progress: show a tqdm bar (needs tqdm).
        sha256: the hexadecimal SHA-256 to check instead of the git blob id.
        max_bytes: largest size of the download in bytes.
        opener: a function that takes the URL and returns a readable response with ``headers``. By default
            ``urllib.request.urlopen`` with a timeout of 60 seconds.

    Raises:
        ValueError: ``name`` is unknown; or the download is too large, truncated, has another digest, or is
            not a data set.
        TypeError: an argument has the wrong type.
        ImportError: ``progress`` is set and tqdm is not installed.
        OSError: the network or the disk failed.
    """
    if not isinstance(name, str) or name not in BLOBS:
        check.fail("name", f"one of {', '.join(BLOBS)}", repr(name)[:80])
    check.kind("progress", progress, bool)
    check.int_between("max_bytes", max_bytes, 0)
    if sha256 is not None and (not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256)):
        check.fail("sha256", "64 hexadecimal digits", check.describe(sha256))
    if opener is not None and not callable(opener):
        check.fail("opener", "a function of an address", check.describe(opener), TypeError)
    path = check.path("directory", directory) / f"{name}.pickle"
    if path.exists():
        with path.open("rb") as file:
            if _mismatch(file, name, sha256) is None:
                return path
    path.parent.mkdir(parents=True, exist_ok=True)
    url = URL.format(commit=COMMIT, name=name)
    opener = opener or partial(urlopen, timeout=60)
    with _opened(opener, url) as response, atomic_write(path) as file:
        _copy(response, file, url, max_bytes, progress)
        mismatch = _mismatch(file, name, sha256)
        if mismatch is not None:
            check.fail(url, *mismatch)
        file.seek(0)
        try:
            read_notes(file)
        except (ValueError, OverflowError) as error:
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"{url}: expected pickled note lists, got {got}") from error
    return path


def _opened(opener: Callable[[str], Any], url: str) -> Any:
    """The answer of a server.

    Raises:
        OSError: there is none; the message names the address.
    """
    try:
        return opener(url)
    except URLError as error:
        raise OSError(f"{url}: expected an answer, got {error.reason}") from error


def _copy(response: Any, file: BinaryIO, url: str, max_bytes: int, progress: bool) -> None:
    header = response.headers.get("Content-Length")
    if header is not None and not re.fullmatch("[0-9]{1,18}", str(header).strip()):
        check.fail(url, "a number as its Content-Length", repr(header)[:80])
    total = None if header is None else int(header)
    if total is not None and total > max_bytes:
        check.fail(url, f"at most max_bytes = {max_bytes}", f"{total} bytes")
    with _bar(total, url.rpartition("/")[2], progress) as update:
        size = 0
        while chunk := response.read(_CHUNK):
            size += len(chunk)
            if size > max_bytes:
                check.fail(url, f"at most max_bytes = {max_bytes}", "more")
            file.write(chunk)
            update(len(chunk))
    if total is not None and size != total:
        check.fail(url, f"{total} bytes as its Content-Length says", f"{size}")


@contextmanager
def _bar(total: int | None, name: str, progress: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function to be called with the number of bytes of each received block."""
    if not progress:
        yield lambda _: None
        return
    # Imported here, since tqdm is needed only to show a bar.
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield bar.update


def _mismatch(file: BinaryIO, name: str, sha256: str | None) -> tuple[str, str] | None:
    """``None`` if the digest is right, else the expected and the actual digest."""
    size = file.seek(0, 2)
    file.seek(0)
    if sha256 is None:
        kind, expected, digest = "git blob", BLOBS[name], hashlib.sha1(b"blob %d\0" % size)
    else:
        kind, expected, digest = "SHA-256", sha256.lower(), hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest() == expected:
        return None
    return f"{kind} {expected}", digest.hexdigest()

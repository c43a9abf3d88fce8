"""Downloads from a local server."""

import hashlib
import importlib
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from dmm_fast.data import download, load

# The function has the module's name.
module = importlib.import_module("dmm_fast.data._download")

NOTES = {split: [[(60, 64), (62,)]] for split in ("train", "valid", "test")}
CONTENT = pickle.dumps(NOTES, 2)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "jsb_chorales"


class Server(ThreadingHTTPServer):
    """Serves one body with a true or false content length."""

    body = CONTENT
    content_length: int | None = len(CONTENT)
    status = 200
    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.send_response(self.server.status)
        if self.server.content_length is not None:
            self.send_header("Content-Length", str(self.server.content_length))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as it:
        it.requests = []
        thread = threading.Thread(target=it.serve_forever, args=(0.01,))
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture
def opener(server: Server) -> Callable[[str], Any]:
    return lambda url: urlopen(f"http://127.0.0.1:{server.server_port}{urlsplit(url).path}", timeout=10)


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("says_length", [True, False])
def test_download(
    server: Server, opener: Any, tmp_path: Path, capsys: Any, progress: bool, says_length: bool
) -> None:
    server.content_length = len(CONTENT) if says_length else None
    folder = tmp_path / "new" / "folder"
    path = download(NAME, folder, progress=progress, sha256=SHA256.upper(), opener=opener)
    assert path == folder / "jsb_chorales.pickle"
    assert path.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [path]
    assert server.requests == [f"/pyro-ppl/datasets/raw/{module.COMMIT}/polyphonic/{NAME}.pickle"]
    assert (f"{NAME}.pickle" in capsys.readouterr().err) == progress
    assert load(path).train.sequences.sum() == 3
    # An existing file with the right hash is not fetched again.
    download(NAME, str(folder), sha256=SHA256, opener=opener)
    assert len(server.requests) == 1


def test_without_a_bar_tqdm_is_not_needed(opener: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    download(NAME, tmp_path, progress=False, sha256=SHA256, opener=opener)
    with pytest.raises(ImportError):
        download("nottingham", tmp_path, sha256=SHA256, opener=opener)
    assert [p.name for p in tmp_path.iterdir()] == ["jsb_chorales.pickle"]


def test_git_blob_is_checked(opener: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match=f"expected git blob {module.BLOBS[NAME]}"):
        download(NAME, tmp_path, progress=False, opener=opener)
    assert list(tmp_path.iterdir()) == []
    # `git hash-object` of CONTENT, by git's definition.
    blob = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    monkeypatch.setitem(module.BLOBS, NAME, blob)
    assert download(NAME, tmp_path, progress=False, opener=opener).read_bytes() == CONTENT


NOT_NOTES = pickle.dumps({"train": 1})
HOSTILE = pickle.dumps(socket.gethostname)


@pytest.mark.parametrize("earlier", [None, b"earlier"])
@pytest.mark.parametrize(
    ("served", "arguments", "error", "message"),
    [
        ({"body": CONTENT[:20]}, {}, ValueError, "bytes as its Content-Length says, got 20"),
        ({"body": CONTENT + b"x", "content_length": None}, {}, ValueError, "expected SHA-256"),
        ({"body": b"", "content_length": 0}, {}, ValueError, "expected SHA-256"),
        ({}, {"sha256": "0" * 64}, ValueError, f"expected SHA-256 {'0' * 64}, got {SHA256}"),
        ({}, {"max_bytes": 20}, ValueError, r"at most max_bytes = 20, got \d+ bytes"),
        ({"content_length": None}, {"max_bytes": 20}, ValueError, "at most max_bytes = 20, got"),
        ({"status": 404}, {}, OSError, "pickle: expected an answer, got Not Found"),
        (
            {"body": NOT_NOTES, "content_length": None},
            {"sha256": hashlib.sha256(NOT_NOTES).hexdigest()},
            ValueError,
            "expected pickled note lists",
        ),
        (
            {"body": HOSTILE, "content_length": None},
            {"sha256": hashlib.sha256(HOSTILE).hexdigest()},
            ValueError,
            "refused",
        ),
    ],
)
def test_a_failed_download_leaves_no_file(
    server: Server,
    opener: Any,
    tmp_path: Path,
    earlier: bytes | None,
    served: dict[str, Any],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    for name, value in served.items():
        setattr(server, name, value)
    path = tmp_path / f"{NAME}.pickle"
    if earlier is not None:
        path.write_bytes(earlier)
    keywords = {"progress": False, "sha256": SHA256, "opener": opener, **arguments}
    with pytest.raises(error, match=message):
        download(NAME, tmp_path, **keywords)
    assert len(server.requests) == 1
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([earlier] if earlier else [])


def test_interrupted(tmp_path: Path) -> None:
    class Response:
        headers: dict[str, str]

        def __init__(self) -> None:
            self.headers = {}
            self.chunks = [CONTENT[:20]]

        def __enter__(self) -> "Response":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, _: int) -> bytes:
            if not self.chunks:
                raise KeyboardInterrupt
            return self.chunks.pop()

    with pytest.raises(KeyboardInterrupt):
        download(NAME, tmp_path, progress=False, opener=lambda _: Response())
    assert list(tmp_path.iterdir()) == []


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name: expected one of jsb_chorales, .* got 'jsb'"):
        download("jsb", tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(
            OSError, match=f"^https://github.com/.*{NAME}.pickle: expected an answer, got .*refused"
        ):
            download(NAME, tmp_path, opener=lambda _: urlopen(f"http://127.0.0.1:{port}/"))
    assert list(tmp_path.iterdir()) == []


def test_real_file_has_the_pinned_hash(data_dir: Path) -> None:
    if not (data_dir / f"{NAME}.pickle").is_file():
        pytest.skip(f"needs {NAME}.pickle in {data_dir}; set DMM_FAST_DATA to where it is")

    def unreachable(url: str) -> Any:
        raise AssertionError(f"fetched {url} although the file is there")

    assert download(NAME, data_dir, opener=unreachable) == data_dir / f"{NAME}.pickle"

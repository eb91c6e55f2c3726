"""Missing files are downloaded, here from a real server, or there is an error; a partial file is never left."""

import gzip
import hashlib
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from capsnet.data import sources
from capsnet.data.sources import FILES, load_source
from capsnet.errors import InputError


class Handler(SimpleHTTPRequestHandler):
    """Serves the folder good/ as it is, under broken/ its first half, and nothing else."""

    def do_GET(self):
        if not self.path.startswith("/broken/"):
            return super().do_GET()
        content = Path(self.directory, "good", Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, put, monkeypatch):
    """Serve four files on 127.0.0.1 and enter some of the server's folders as the mirrors of mnist."""
    served = put(tmp_path / "served" / "good")
    checksums = tuple(hashlib.sha256((served / file).read_bytes()).hexdigest() for file in FILES)
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served.parent)) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def mirrors(*folders, sha256=checksums):
            urls = tuple(f"http://127.0.0.1:{server.server_port}/{folder}/" for folder in folders)
            monkeypatch.setitem(
                sources.SOURCES, "mnist", replace(sources.SOURCES["mnist"], mirrors=urls, sha256=sha256)
            )

        yield mirrors
        server.shutdown()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_missing_files_are_downloaded_under_the_name_of_the_set(tmp_path, mirror, capfd):
    mirror("good")
    assert len(load_source("mnist", tmp_path / "data").train) == 6
    assert files_in(tmp_path / "data" / "mnist") == sorted(FILES)
    assert capfd.readouterr() == ("", "")


def test_a_download_is_logged_in_one_line(tmp_path, mirror, caplog):
    mirror("good")
    with caplog.at_level("INFO", logger="capsnet"):
        load_source("mnist", tmp_path / "data")
    assert [record.getMessage().split()[0] for record in caplog.records if record.name.startswith("capsnet")] == [
        "downloading"
    ] * len(FILES)


def test_only_what_is_missing_is_downloaded(tmp_path, mirror, put):
    put(tmp_path / "data" / "mnist")
    own = tmp_path / "data" / "mnist" / FILES[0]
    own.write_bytes(gzip.compress(gzip.decompress(own.read_bytes()), mtime=1))
    before = own.read_bytes()
    (own.parent / FILES[3]).unlink()
    mirror("good")
    load_source("mnist", tmp_path / "data")
    assert own.read_bytes() == before
    assert files_in(own.parent) == sorted(FILES)


@pytest.mark.parametrize("first", ["absent", "broken"])
def test_a_mirror_that_fails_gives_way_to_the_next(tmp_path, mirror, first):
    mirror(first, "good")
    assert len(load_source("mnist", tmp_path / "data").test) == 2
    assert files_in(tmp_path / "data") == sorted(FILES)


def test_a_wrong_checksum_is_refused_and_leaves_no_file(tmp_path, mirror):
    mirror("good", sha256=("0" * 64,) * 4)
    with pytest.raises(InputError, match="/good/: wrong checksum"):
        load_source("mnist", tmp_path / "data")
    assert files_in(tmp_path / "data") == []


def test_a_connection_cut_short_leaves_no_file(tmp_path, mirror):
    mirror("broken")
    with pytest.raises(InputError, match="/broken/: "):
        load_source("mnist", tmp_path / "data")
    assert files_in(tmp_path / "data") == []


def test_when_all_mirrors_fail_one_line_says_what_where_why_and_the_way_out(tmp_path, mirror, put):
    folder = put(tmp_path / "data" / "mnist")
    (folder / FILES[1]).unlink()
    (folder / FILES[2]).unlink()
    mirror("absent", "gone")
    with pytest.raises(InputError) as refusal:
        load_source("mnist", tmp_path / "data")
    message = str(refusal.value)
    assert message.startswith(f"mnist: {FILES[1]}, {FILES[2]} not in {folder} or {folder.parent}, and the download")
    assert message.count("HTTP status 404") == 2
    assert message.endswith("put the files there, or give their folder with --data-dir")
    assert "\n" not in message


def test_no_server_at_all_is_a_refusal_too(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    nobody = replace(sources.SOURCES["mnist"], mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(sources.SOURCES, "mnist", nobody)
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/: ConnectionError"):
        load_source("mnist", tmp_path)

"""Fetching, against a server of our own that can keep ranges, refuse them, and hang up in the middle."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from sleepai.core import InputError
from sleepai.data import RemoteFile, fetch, unpack
from sleepai.datasets import sleep_edf
from sleepai.datasets.dreams import Dreams
from sleepai.datasets.sleep_edf_features import SleepEDFFeatures

BODY = np.random.default_rng(0).bytes(1 << 20)


class Server(ThreadingHTTPServer):
    """Serves `files`, or 404.

    Each path in `hang_up` is cut off half way, once.
    `seen` lists (path, range) of every GET, `asked` every HEAD.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.hang_up, self.seen, self.asked, self.ranges = {}, set(), [], [], True
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that left early is part of the test


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.server.asked.append(self.path)
        self.send_response(200 if self.path in self.server.files else 404)
        self.end_headers()

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.seen.append((self.path, wanted))
        body = server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.path in server.hang_up:
            server.hang_up.remove(self.path)
            self.wfile.write(body[start : start + (len(body) - start) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body[start:])


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server, name="night.edf", body=BODY, how="sha256"):
    "A file on the server with its right checksum."
    server.files[f"/{name}"] = body
    return RemoteFile(name, f"{server.url}/{name}", f"{how}:{hashlib.new(how, body).hexdigest()}")


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        for name, body in members.items():
            z.writestr(name, body)
    return buffer.getvalue()


def visible(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    )


@pytest.mark.parametrize("how", ["sha256", "sha1"])
def test_a_download_arrives_whole_and_is_checked(server, tmp_path, how):
    steps = []
    files = [remote(server, "a/night.edf", BODY, how)]
    came = fetch(files, tmp_path, progress=lambda done, total, name: steps.append((done, total, name)))
    assert came == ["a/night.edf"] and (tmp_path / "a/night.edf").read_bytes() == BODY
    assert steps[0] == (0, 1, "a/night.edf") and [s[0] for s in steps] == sorted(s[0] for s in steps)
    assert any(0 < s[0] < 1 for s in steps), "progress moves within a file"


def test_what_is_in_place_is_not_asked_for_again(server, tmp_path):
    files = [remote(server)]
    fetch(files, tmp_path)
    assert fetch(files, tmp_path) == [] and len(server.seen) == 1


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    files = [remote(server)]
    server.hang_up.add("/night.edf")
    with pytest.raises(InputError, match="partial downloads are kept"):
        fetch(files, tmp_path)
    assert visible(tmp_path) == [], "a part of a file never stands under the file's name"
    assert fetch(files, tmp_path) == ["night.edf"] and (tmp_path / "night.edf").read_bytes() == BODY
    (_, first), (_, second) = server.seen
    assert first is None and second == f"bytes={len(BODY) // 2}-"
    assert list(tmp_path.glob(".*")) == [], "nothing is left over"


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    files = [remote(server)]
    server.hang_up.add("/night.edf")
    with pytest.raises(InputError):
        fetch(files, tmp_path)
    fetch(files, tmp_path)
    assert (tmp_path / "night.edf").read_bytes() == BODY


def test_files_that_arrived_before_the_break_stay(server, tmp_path):
    files = [remote(server, "1.edf", b"one"), remote(server, "2.edf"), remote(server, "3.edf", b"three")]
    server.hang_up.add("/2.edf")
    with pytest.raises(InputError, match="2.edf"):
        fetch(files, tmp_path)
    assert visible(tmp_path) == ["1.edf"]
    assert fetch(files, tmp_path) == ["2.edf", "3.edf"]


def test_a_damaged_download_is_refused_in_one_sentence(server, tmp_path):
    good = remote(server)
    server.files["/night.edf"] = BODY[:-1] + b"!"
    with pytest.raises(InputError, match="checksum differs") as e:
        fetch([good], tmp_path)
    said = str(e.value)
    assert good.url in said and said.count("\n") == 0 and said.rstrip(".").count(". ") == 0
    assert visible(tmp_path) == []
    server.files["/night.edf"] = BODY
    assert fetch([good], tmp_path) == ["night.edf"], "the next try starts clean"


def test_a_damaged_file_in_place_is_refused(server, tmp_path):
    files = [remote(server)]
    (tmp_path / "night.edf").write_bytes(b"half")
    with pytest.raises(InputError, match="night.edf.*damaged or another version"):
        fetch(files, tmp_path)
    assert (tmp_path / "night.edf").read_bytes() == b"half", "the user's file is theirs to delete"


def test_not_found_and_no_server(server, tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        fetch([RemoteFile("x", f"{server.url}/x")], tmp_path)
    with pytest.raises(InputError, match="no direct download; use --from"):
        fetch([RemoteFile("x")], tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="download failed"):
        fetch([RemoteFile("y", f"{server.url}/y")], tmp_path)


def test_from_a_url_that_mirrors_the_source(server, tmp_path):
    name, sha = "sub/night.edf", hashlib.sha256(BODY).hexdigest()
    server.files[f"/mirror/{name}"] = BODY
    files = [RemoteFile(name, "http://source.invalid/night.edf", f"sha256:{sha}")]
    assert fetch(files, tmp_path, f"{server.url}/mirror/") == [name]
    assert [p for p, _ in server.seen] == [f"/mirror/{name}"]


@pytest.mark.parametrize("where", ["sub/night.edf", "night.edf"])
def test_from_a_folder_nested_or_flat(tmp_path, where):
    mirror, folder = tmp_path / "mirror", tmp_path / "raw"
    (mirror / where).parent.mkdir(parents=True)
    (mirror / where).write_bytes(BODY)
    files = [
        RemoteFile("sub/night.edf", hash=f"sha256:{hashlib.sha256(BODY).hexdigest()}"),
        RemoteFile("sub/other.edf"),
    ]
    assert fetch(files, folder, str(mirror)) == ["sub/night.edf"]
    assert visible(folder) == ["sub/night.edf"]


def test_a_folder_that_holds_nothing_or_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    files = [RemoteFile("night.edf")]
    with pytest.raises(InputError, match="holds none of the 1 files.*nights.zip"):
        fetch(files, tmp_path / "raw", str(tmp_path / "empty"), ("nights.zip",))
    with pytest.raises(InputError, match="there is no such folder"):
        fetch(files, tmp_path / "raw", str(tmp_path / "nowhere"))


def test_a_folder_with_a_damaged_copy(tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "night.edf").write_bytes(b"bad")
    with pytest.raises(InputError, match="damaged or another version"):
        fetch([RemoteFile("night.edf", hash="sha256:" + "0" * 64)], tmp_path / "raw", str(mirror))


@pytest.mark.parametrize("by", ["folder", "url"])
def test_an_archive_of_a_mirror_is_unpacked_and_checked(server, tmp_path, by):
    body = zipped(**{"night.edf": BODY, "notes/readme.txt": b"hello"})
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "nights.zip").write_bytes(body)
    server.files["/nights.zip"] = body
    files = [RemoteFile("night.edf", hash=f"sha256:{hashlib.sha256(BODY).hexdigest()}")]
    came = fetch(files, tmp_path / "raw", str(mirror) if by == "folder" else server.url, ("nights.zip",))
    assert set(came) == {"night.edf", "notes/readme.txt"} == set(visible(tmp_path / "raw"))


def test_members_that_point_outside_are_not_written(tmp_path):
    zip_path, tar_path = tmp_path / "a.zip", tmp_path / "a.tar.xz"
    zip_path.write_bytes(zipped(**{"../evil.txt": b"x", "/tmp/evil-sleepai.txt": b"x", "good.txt": b"x"}))
    with tarfile.open(tar_path, "w:xz") as z:
        for name in ("../evil.txt", "good.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            z.addfile(info, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret"
        z.addfile(link)
    for archive in (zip_path, tar_path):
        folder = tmp_path / archive.suffix[1:] / "raw"
        assert unpack(archive, folder) == ["good.txt"]
        assert visible(folder.parent) == ["raw/good.txt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_archive_is_refused_in_one_sentence(tmp_path, damage):
    body = bytearray(zipped(**{"night.csv": b"0.0,30.0,Sleep stage W\n" * 5000}))
    if damage == "cut":
        body = body[: len(body) // 2]
    if damage == "flipped":
        body[60:90] = bytes(b ^ 0xFF for b in body[60:90])
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>" if damage == "text" else bytes(body))
    with pytest.raises(InputError, match="a.zip: cannot be unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "raw")
    assert not (tmp_path / "raw").exists() or visible(tmp_path / "raw") == []


# Sleep-EDF: two nights with contents and checksums of our own, in PhysioNet's layout

NIGHTS = {
    f"SC400{n}E{end}": np.random.default_rng([n, k]).bytes(size)
    for n in (1, 2)
    for k, (end, size) in enumerate((("0-PSG.edf", 1 << 20), ("C-Hypnogram.edf", 1 << 12)))
}
LABELS = {name: body for name, body in NIGHTS.items() if "Hypnogram" in name}


def two_nights(folder):
    "A `SleepEDF` whose source publishes only NIGHTS."

    def table():
        t = pd.DataFrame(
            dict(
                psg=[f"SC400{n}E0-PSG.edf" for n in (1, 2)],
                hypnogram=[f"SC400{n}EC-Hypnogram.edf" for n in (1, 2)],
            )
        )
        for kind in ("psg", "hypnogram"):
            t[f"{kind}_sha1"] = [hashlib.sha1(NIGHTS[name]).hexdigest() for name in t[kind]]
            t[kind] = "sleep-cassette/" + t[kind]
        return t.assign(record=["SC4001E0", "SC4002E0"], age=33, sex="F")

    ds = sleep_edf.SleepEDF(folder)
    ds.table = table
    return ds


def test_sleep_edf_comes_from_its_source_hypnograms_first_and_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sleep_edf, "_URL", server.url)
    server.files |= {f"/sleep-cassette/{name}": body for name, body in NIGHTS.items()}
    server.hang_up.add("/sleep-cassette/SC4002E0-PSG.edf")
    ds = two_nights(tmp_path)
    with pytest.raises(InputError, match="SC4002E0-PSG.edf.*partial downloads are kept"):
        ds.fetch()
    assert ["Hypnogram" in p for p, _ in server.seen] == [True, True, False, False]
    assert [r.name for r in ds.records()] == ["SC4001E0"]
    assert ds.fetch() == ["sleep-cassette/SC4002E0-PSG.edf"]
    assert server.seen[-1][1] == f"bytes={(1 << 20) // 2}-" and len(server.seen) == 5
    assert [(r.name, r.subject, r.night, r.age, r.sex) for r in ds.records()] == [
        ("SC4001E0", "SC400", 1, 33, "F"),
        ("SC4002E0", "SC400", 2, 33, "F"),
    ]


@pytest.mark.parametrize("layout", ["sleep-cassette/", ""])
@pytest.mark.parametrize("by", ["folder", "url"])
def test_sleep_edf_from_a_mirror_in_either_layout(server, tmp_path, layout, by):
    mirror = tmp_path / "mirror"
    for name, body in NIGHTS.items():
        (mirror / layout).mkdir(parents=True, exist_ok=True)
        (mirror / layout / name).write_bytes(body)
        server.files[f"/{layout}{name}"] = body
    ds = two_nights(tmp_path / "raw")
    assert len(ds.fetch(str(mirror) if by == "folder" else server.url)) == 4
    assert [r.name for r in ds.records()] == ["SC4001E0", "SC4002E0"] and ds.available()


def test_sleep_edf_files_that_lie_flat_are_judged_in_place(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sleep_edf, "_URL", server.url)
    for name, body in NIGHTS.items():
        (tmp_path / name).write_bytes(body)
    ds = two_nights(tmp_path)
    assert ds.fetch() == [] and server.seen == [] and len(ds.records()) == 2
    (tmp_path / "SC4001E0-PSG.edf").write_bytes(b"half")
    with pytest.raises(InputError, match="SC4001E0-PSG.edf.*damaged"):
        ds.fetch()


@pytest.mark.parametrize("by", ["folder", "url"])
def test_sleep_edf_from_a_mirror_of_the_labels_alone(server, tmp_path, by):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "sleep-edf-hypnograms.zip").write_bytes(zipped(**LABELS))
    server.files["/sleep-edf-hypnograms.zip"] = zipped(**LABELS)
    ds = two_nights(tmp_path / "raw")
    assert set(ds.fetch(str(mirror) if by == "folder" else server.url)) == set(LABELS)
    assert not ds.available()
    assert "2 hypnograms without their recording" in str(ds.missing())


def test_sleep_edf_from_nowhere(tmp_path):
    (tmp_path / "mirror").mkdir()
    with pytest.raises(InputError, match="holds none of the 4 files"):
        two_nights(tmp_path / "raw").fetch(str(tmp_path / "mirror"))


# Sets whose source offers no direct download


def test_features_and_dreams_say_how_they_come(tmp_path):
    with pytest.raises(InputError, match="--from.*sleep-edf-features.zip"):
        SleepEDFFeatures(tmp_path / "f").fetch()
    with pytest.raises(InputError, match="DatabaseSpindles.rar.*--from"):
        Dreams(tmp_path / "d").fetch()


def test_dreams_from_a_folder_of_unpacked_files(tmp_path):
    "Excerpts without a known checksum come along; the rate follows from the length."
    source = tmp_path / "DatabaseSpindles"
    source.mkdir()
    (source / "excerpt2.txt").write_text("[CZ-A1]\n" + "   1.5000\n" * 90_000)
    (source / "Hypnogram_excerpt2.txt").write_text("[Hypnogram]\n" + "5\n" * 12 + "-1\n" * 12 + "0\n" * 336)
    ds = Dreams(tmp_path / "raw")
    assert set(ds.fetch(str(source))) == {"excerpt2.txt", "Hypnogram_excerpt2.txt"}
    ((recording, hypnogram),) = ds.load("DREAMS2")
    assert recording.sfreq == 50 and recording.ch_names == ("CZ-A1",)
    assert hypnogram.counts() == dict(W=2, N1=0, N2=0, N3=56, R=0, UNSCORED=0, MOVEMENT=2)


def test_features_from_an_archive_are_checked(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, X=np.zeros((4, 72), np.float32), y=np.zeros(4, np.int8))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/sleep-edf-features.zip").write_bytes(zipped(**{"SC4001E0.npz": buffer.getvalue()}))
    with pytest.raises(InputError, match="SC4001E0.npz.*damaged or another version"):
        SleepEDFFeatures(tmp_path / "raw").fetch(str(tmp_path / "mirror"))

"""Fetching sets from a real server that breaks connections, sends wrong answers and replaces its files."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import filelock
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bbcu.data.__main__ import main
from bbcu.data.downloads import ATTEMPTS, DOWNLOAD_OF_SET, DOWNLOADS, Download, download_of, fetch
from bbcu.data.layouts import locate
from bbcu.errors import DataError, printable
from tests.bbcu.data.test_archives import zip_of
from tests.harness.builders import NOBODY, open_folder, without_root_rights
from tests.harness.paths import REPOSITORY

CONTENT = np.random.default_rng(0).bytes(3000)
ETAG = '"first"'


# ---- a server --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What the server says to one request; a body shorter than its Content-Length is a connection that breaks off."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Site:
    """A server on this machine: it answers the requests with ``answers`` in turn, the last one for ever."""

    url: str
    answers: list[Callable[[dict[str, str]], Answer]] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    def answer(self, headers: dict[str, str]) -> Answer:
        self.requests.append(headers)
        return self.answers[min(len(self.requests), len(self.answers)) - 1](headers)

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.requests]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = here.answer(dict(self.headers))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Site(f"http://127.0.0.1:{server.server_port}/files/set.zip")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Behaviour = Callable[[dict[str, str]], Answer]


def serves(content: bytes, etag: str = ETAG, *, cut: int | None = None) -> Behaviour:
    """Serve a file as it should be, Range and If-Range included; ``cut`` breaks off after so many bytes."""

    def answer(headers: dict[str, str]) -> Answer:
        start = 0
        if "Range" in headers and headers.get("If-Range") == etag:
            start = int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
        says = {"ETag": etag, "Content-Length": str(len(content) - start)}
        if start >= len(content) > 0:
            return Answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        if start:
            says["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206 if start else 200, says, content[start:][:cut])

    return answer


def says(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    """Answer every request alike; of the headers a _ stands for a -."""
    return lambda _: Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def one_file(site: Site, content: bytes = CONTENT, size: int | None = None) -> Download:
    """A download of a single file, with the checksum of ``content``."""
    download = download_of(site.url.replace(".zip", ".png"), hashlib.sha256(content).hexdigest())
    return dataclasses.replace(download, bytes=size)


def get(download: Download, target: Path) -> Path:
    return fetch(download, target, progress=lambda here, whole: None, pause_seconds=0)


def refusal(download: Download, target: Path) -> str:
    """Why a set is not fetched: one line, with the URL; nothing may lie at its place."""
    with pytest.raises(DataError) as error:
        get(download, target)
    message = str(error.value)
    assert message.startswith(f"{download.url}: ")
    assert message.isprintable()
    assert visible(target) == []
    return message.removeprefix(f"{download.url}: ")


def visible(folder: Path) -> list[str]:
    """What lies below a folder, but for what is hidden directly in it."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if not name.startswith("."))


def kept(target: Path) -> list[int]:
    """The sizes of the parts that are kept for the next run."""
    return [part.stat().st_size for part in (target / ".downloads").glob("*.part")]


# ---- downloading -----------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_to_its_place_and_leaves_no_part_behind(site: Site, tmp_path: Path) -> None:
    site.answers = [serves(CONTENT)]
    for _ in range(2):
        place = get(one_file(site, size=len(CONTENT)), tmp_path / "data")
        assert place == tmp_path / "data" / "set.png"
        assert place.read_bytes() == CONTENT
        assert [path.suffix for path in (tmp_path / "data" / ".downloads").iterdir()] == [".lock"]
    assert len(site.requests) == 1


def test_progress_reports_the_bytes_here_and_the_total(site: Site, tmp_path: Path) -> None:
    site.answers = [serves(CONTENT, cut=1000), serves(CONTENT)]
    reported: list[tuple[int, int | None]] = []
    fetch(one_file(site), tmp_path, progress=lambda *step: reported.append(step), pause_seconds=0)
    assert reported == [(1000, 3000), (3000, 3000)]


BROKEN = serves(CONTENT, cut=1000)
DATE = "Tue, 14 Feb 2017 14:27:11 GMT"
UNVERSIONED = says(200, CONTENT[:1000], Content_Length="3000")
WEAK = says(200, CONTENT[:1000], ETag='W/"1"', Last_Modified=DATE, Content_Length="3000")
RESUMED = [
    pytest.param([BROKEN, serves(CONTENT, cut=500), serves(CONTENT)], [1000, 1500], id="where it stopped"),
    pytest.param([BROKEN, says(200, CONTENT, ETag=ETAG, Content_Length="3000")], [1000], id="ranges are ignored"),
    pytest.param([BROKEN, says(416), serves(CONTENT)], [1000, None], id="less than is here"),
    pytest.param([BROKEN, serves(CONTENT, '"second"')], [1000], id="the file has changed"),
    pytest.param([UNVERSIONED, says(200, CONTENT, Content_Length="3000")], [None], id="no version"),
    pytest.param([WEAK, serves(CONTENT, DATE)], [1000], id="a weak ETag and a date"),
    *(
        pytest.param([BROKEN, says(206, bytes(2000), **headers), serves(CONTENT)], [1000, None], id=f"another {what}")
        for what, headers in [
            ("version", {"Content_Range": "bytes 1000-2999/3000", "ETag": '"second"'}),
            ("size", {"Content_Range": "bytes 1000-2999/4000", "ETag": ETAG}),
            ("place", {"Content_Range": "bytes 900-2999/3000", "ETag": ETAG}),
            ("place, not stated", {"ETag": ETAG}),
        ]
    ),
]


@pytest.mark.parametrize(("answers", "starts"), RESUMED)
def test_a_broken_download_resumes_or_starts_over(
    site: Site, tmp_path: Path, answers: list[Behaviour], starts: list[int | None]
) -> None:
    """``starts`` are the bytes from which the second and later requests ask for the file."""
    site.answers = answers
    assert get(one_file(site), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, *(None if start is None else f"bytes={start}-" for start in starts)]


def test_a_file_of_known_size_resumes_without_a_stated_length(site: Site, tmp_path: Path) -> None:
    site.answers = [says(200, CONTENT[:1000], ETag=ETAG), serves(CONTENT)]
    assert get(one_file(site, size=3000), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000-"]


def test_attempts_that_bring_something_are_not_counted(site: Site, tmp_path: Path) -> None:
    site.answers = [serves(CONTENT, cut=100)]
    assert get(one_file(site), tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 30 > ATTEMPTS


def test_a_later_run_resumes_what_an_earlier_one_left(site: Site, tmp_path: Path) -> None:
    site.answers = [serves(CONTENT, cut=1000), says(503)]
    message = refusal(one_file(site), tmp_path)
    assert "given up after 5 attempts" in message
    assert "the server answered 503 Service Unavailable; the same command resumes at byte 1000" in message
    site.answers = [serves(CONTENT)]
    assert get(one_file(site), tmp_path).read_bytes() == CONTENT
    assert site.ranges[-1] == "bytes=1000-"


def test_a_run_that_was_interrupted_is_resumed(site: Site, tmp_path: Path) -> None:
    def interrupt(here: int, whole: int | None) -> None:
        raise KeyboardInterrupt

    site.answers = [serves(CONTENT, cut=1000), serves(CONTENT)]
    with pytest.raises(KeyboardInterrupt):
        fetch(one_file(site), tmp_path, progress=interrupt, pause_seconds=0)
    assert visible(tmp_path) == []
    assert get(one_file(site), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("record", ["", "{}", "[]", "no json"])
def test_a_part_whose_record_is_damaged_is_not_resumed(site: Site, tmp_path: Path, record: str) -> None:
    site.answers = [serves(CONTENT, cut=1000), says(503)]
    refusal(one_file(site), tmp_path)
    next((tmp_path / ".downloads").glob("*.part.json")).write_text(record)
    site.answers = [serves(CONTENT)]
    assert get(one_file(site), tmp_path).read_bytes() == CONTENT
    assert site.ranges[-1] is None


# ---- what is refused of a server -------------------------------------------------------------------------------------


REFUSED = [
    *(
        pytest.param(says(status), None, rf"^the server answered {status} ", 1, id=str(status))
        for status in (404, 403, 410, 204)
    ),
    pytest.param(says(200, CONTENT, Content_Length="2000"), 3000, "has 2000 bytes, not", 1, id="short"),
    pytest.param(says(200, CONTENT, Content_Length="4000"), 3000, "has 4000 bytes, not", 1, id="long"),
    pytest.param(
        says(200, CONTENT, Content_Length="2000"), None, hashlib.sha256(CONTENT[:2000]).hexdigest(), 1, id="cut"
    ),
    pytest.param(says(200, CONTENT, Content_Length="4000"), None, "given up after 5 attempts", 5, id="never complete"),
    pytest.param(
        says(200, CONTENT, ETag=ETAG, Content_Length="4000"), None, "given up after 5 ", 5, id="never, without ranges"
    ),
    pytest.param(says(200, CONTENT), 2000, "sends more than the 2000 bytes that are expected", 1, id="too much"),
]


@pytest.mark.parametrize(("answer", "size", "message", "requests"), REFUSED)
def test_a_wrong_answer_is_refused(
    site: Site, tmp_path: Path, answer: Behaviour, size: int | None, message: str, requests: int
) -> None:
    site.answers = [answer]
    assert re.search(message, refusal(one_file(site, size=size), tmp_path))
    assert len(site.requests) == requests
    assert set(kept(tmp_path)) <= {0, 3000}


def test_a_server_that_is_away_or_redirects_for_ever_is_one_line(site: Site, tmp_path: Path) -> None:
    away = dataclasses.replace(one_file(site), url="http://127.0.0.1:1/set.png")
    assert "given up after 5 attempts" in refusal(away, tmp_path)
    site.answers = [says(302, Location=site.url)]
    assert "redirects" in refusal(one_file(site), tmp_path)


def test_a_file_that_the_server_calls_gzip_encoded_is_not_decoded(site: Site, tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    site.answers = [says(200, packed, Content_Encoding="x-gzip", Content_Length=str(len(packed)))]
    assert get(one_file(site, packed), tmp_path).read_bytes() == packed
    assert site.requests[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_temporary_fault_is_retried_and_at_last_given_up(site: Site, tmp_path: Path, status: int) -> None:
    site.answers = [says(status), says(status), serves(CONTENT)]
    assert get(one_file(site), tmp_path / "one").read_bytes() == CONTENT
    site.answers, site.requests = [says(status)], []
    message = refusal(one_file(site), tmp_path / "two")
    assert message.startswith(f"given up after 5 attempts without progress: the server answered {status} ")
    assert len(site.requests) == ATTEMPTS


def test_a_wrong_file_is_deleted_with_both_checksums_named_and_fetched_again(site: Site, tmp_path: Path) -> None:
    wrong = CONTENT[::-1]
    site.answers = [serves(wrong), serves(CONTENT)]
    message = refusal(one_file(site), tmp_path)
    assert hashlib.sha256(CONTENT).hexdigest() in message
    assert hashlib.sha256(wrong).hexdigest() in message
    assert [path.suffix for path in (tmp_path / ".downloads").iterdir()] == [".lock"]
    assert get(one_file(site), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, None]


def test_a_file_without_a_checksum_is_accepted_and_its_checksum_logged(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.answers = [serves(CONTENT)]
    get(dataclasses.replace(one_file(site), sha256=None), tmp_path)
    assert f"the SHA-256 is {hashlib.sha256(CONTENT).hexdigest()}" in caplog.text


def test_a_set_that_another_process_is_fetching_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".downloads").mkdir()
    with filelock.FileLock(tmp_path / ".downloads" / "set.png.lock"), pytest.raises(DataError) as error:
        get(one_file(site), tmp_path)
    assert str(error.value) == f"{tmp_path}/set.png: another process is fetching it"
    assert site.requests == []


def test_a_target_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match=rf"^{tmp_path}/data"):
        get(one_file(site), tmp_path / "data")


# ---- a server that does not follow the protocol ----------------------------------------------------------------------


@pytest.fixture
def raw_site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that answers with the bytes of ``body`` alone, and closes the connection."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(here.answer({}).body)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        here = Site(f"http://127.0.0.1:{server.server_address[1]}/files/set.zip")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield here
        server.shutdown()
        thread.join()


def sends(head: bytes, body: bytes = CONTENT) -> Behaviour:
    return lambda _: Answer(0, {}, b"HTTP/1.1 " + head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        pytest.param(b"302 x\nLocation: file:///etc/passwd", "No connection adapters", id="redirect to a file"),
        pytest.param(b"302 x\nLocation: ftp://host/a.zip", "No connection adapters", id="redirect to FTP"),
        pytest.param(b"302 x\nLocation: http://[", "Invalid IPv6 URL", id="redirect to no URL"),
        pytest.param(b"302 x\nLocation: /\xff", "can't decode byte", id="redirect that is no text"),
        pytest.param(b"200 OK\n" + b"X: 1\n" * 200, "given up after 5 attempts", id="headers without end"),
        pytest.param(b"200 OK\nX: " + b"1" * 10**6, "given up after 5 attempts", id="a header without end"),
        pytest.param(b"200 OK\nContent-Length: 1, 2", "multiple unmatching values", id="two lengths"),
        pytest.param(b"404 " + b"x" * 60_000, "the server answered 404 xxx", id="a reason without end"),
        pytest.param(b"200 OK\nTransfer-Encoding: chunked", "given up after 5 attempts", id="no chunks"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_one_short_line(
    raw_site: Site, tmp_path: Path, head: bytes, message: str
) -> None:
    raw_site.answers = [sends(head)]
    found = refusal(one_file(raw_site), tmp_path)
    assert message in found
    assert len(found) < 1000


def test_a_length_of_5000_digits_is_ignored(raw_site: Site, tmp_path: Path) -> None:
    """Python refuses to convert so many."""
    raw_site.answers = [sends(b"200 OK\nContent-Length: " + b"9" * 5000)]
    assert get(one_file(raw_site), tmp_path).read_bytes() == CONTENT


def test_a_range_of_5000_digits_is_another_part_of_the_file(raw_site: Site, tmp_path: Path) -> None:
    cut = sends(b'200 OK\nContent-Length: 3000\nETag: "1"', CONTENT[:1000])
    raw_site.answers = [cut, sends(b"206 x\nContent-Range: bytes " + b"9" * 5000 + b"-2/3"), sends(b"200 OK")]
    assert get(one_file(raw_site), tmp_path).read_bytes() == CONTENT


HEADERS = ["Content-Length", "Content-Range", "ETag", "Location", "Transfer-Encoding", "Content-Encoding"]
VALUES = ["3000", "0", "-1", "chunked", "gzip", "bytes 1000-2999/3000", '"1"', "http://", "/", "//", "file:///a"]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Random bytes, or an answer of random headers and values."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=200))
    status = draw(
        st.sampled_from([b"200", b"206", b"301", b"302", b"307", b"416", b"500", b"100"]) | st.binary(max_size=3)
    )
    value = st.sampled_from([value.encode() for value in VALUES]) | st.binary(max_size=20)
    headers = draw(st.lists(st.tuples(st.sampled_from(HEADERS), value), max_size=4))
    lines = [name.encode() + b": " + text.replace(b"\n", b"") for name, text in headers]
    body = draw(st.sampled_from([CONTENT, CONTENT[1000:], b"", b"bb8\r\n" + CONTENT + b"\r\n0\r\n\r\n"]))
    return b"HTTP/1.1 " + b"\r\n".join([status + b" x", *lines]) + b"\r\n\r\n" + body


@hypothesis.given(st.lists(answers(), min_size=1, max_size=3))
def test_whatever_a_server_sends_the_file_is_right_or_refused_in_one_line(
    raw_site: Site, tmp_path_factory: pytest.TempPathFactory, sent: list[bytes]
) -> None:
    place = tmp_path_factory.mktemp("any")
    raw_site.requests.clear()
    raw_site.answers = [lambda _, one=one: Answer(0, {}, one) for one in sent]  # type: ignore[misc]
    message = ""
    try:
        assert get(one_file(raw_site), place).read_bytes() == CONTENT
    except DataError as error:
        message = str(error)
        assert visible(place) == []
    assert message.isprintable()
    assert len(message) < 1000


# ---- a folder that others can write ----------------------------------------------------------------------------------


def part_of(download: Download, target: Path) -> Path:
    """The place of a part, in a folder that exists."""
    (target / ".downloads").mkdir(exist_ok=True)
    return target / ".downloads" / f"{hashlib.sha256(download.url.encode()).hexdigest()}.part"


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(lambda part, victim: part.symlink_to(victim), id="a link"),
        pytest.param(lambda part, victim: part.hardlink_to(victim), id="a second name"),
        pytest.param(lambda part, victim: part.symlink_to("nowhere"), id="a dangling link"),
        pytest.param(lambda part, victim: os.mkfifo(part), id="a pipe"),
    ],
)
@pytest.mark.parametrize("ending", [".part", ".part.json"])
def test_what_is_planted_in_place_of_a_part_is_removed_and_not_written_to(
    site: Site, tmp_path: Path, plant: Callable[[Path, Path], object], ending: str
) -> None:
    site.answers = [serves(CONTENT, cut=1000), serves(CONTENT)]
    victim = tmp_path / "victim"
    victim.write_text(json.dumps({"validator": ETAG, "total": 9}))
    plant(part_of(one_file(site), tmp_path).with_suffix(ending), victim)
    assert get(one_file(site), tmp_path / "").read_bytes() == CONTENT
    assert victim.read_text() == '{"validator": "\\"first\\"", "total": 9}'
    assert site.ranges[0] is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_the_part_of_another_user_is_not_continued(site: Site) -> None:
    """Of a URL without a checksum, its bytes would be taken for those of the server."""
    site.answers = [serves(CONTENT)]
    download = dataclasses.replace(one_file(site), sha256=None)
    with open_folder() as target:
        part = part_of(download, target)
        part.write_bytes(b"planted")
        part.with_name(f"{part.name}.json").write_text(json.dumps({"validator": ETAG, "total": len(b"planted")}))
        for path in (target, part.parent):
            os.chown(path, NOBODY, NOBODY)
        with without_root_rights():
            assert get(download, target).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("[" * 100_000, id="nested"),
        pytest.param('{"validator": [], "total": 3000}', id="validator"),
        pytest.param('{"validator": "1", "total": "3000"}', id="total"),
        pytest.param('{"validator": "1", "total": -1}', id="negative"),
        pytest.param('{"validator": "1", "total": 1e999}', id="infinite"),
    ],
)
def test_a_record_of_anything_else_is_not_trusted(site: Site, tmp_path: Path, record: str) -> None:
    site.answers = [serves(CONTENT)]
    part = part_of(one_file(site), tmp_path)
    part.write_bytes(CONTENT[:1000])
    part.with_name(f"{part.name}.json").write_text(record)
    assert get(one_file(site), tmp_path).read_bytes() == CONTENT


# ---- installing ------------------------------------------------------------------------------------------------------


def archive_of(site: Site, content: bytes, member: str | None = None, **changes: Any) -> Download:
    """A download of a zip, with its checksum."""
    download = download_of(site.url, hashlib.sha256(content).hexdigest())
    return dataclasses.replace(download, member=member, **changes)


def test_an_archive_is_unpacked_to_its_place_once(site: Site, tmp_path: Path) -> None:
    content = zip_of(("a.png", b"one"))
    site.answers = [serves(content)]
    for _ in range(2):
        assert get(archive_of(site, content), tmp_path) == tmp_path / "set"
    assert visible(tmp_path) == ["set", "set/a.png"]
    assert len(site.requests) == 1


@pytest.mark.parametrize("wrapper", ["", "wrapped/"], ids=["plain", "in a folder of its own"])
def test_an_empty_folder_at_its_place_is_filled(site: Site, tmp_path: Path, wrapper: str) -> None:
    content = zip_of((f"{wrapper}a.png", b"one"), (f"{wrapper}b.png", b"two"))
    site.answers = [serves(content)]
    (tmp_path / "set").mkdir()
    assert visible(get(archive_of(site, content), tmp_path)) == ["a.png", "b.png"]


def test_a_refused_archive_is_deleted_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    content = zip_of(("a.png", b"one"), ("../evil.png", b"evil"))
    site.answers = [serves(content)]
    assert refusal(archive_of(site, content), tmp_path).startswith("the archive holds '../evil.png'")
    assert [path.suffix for path in (tmp_path / ".downloads").iterdir()] == [".lock"]


def test_an_unpacking_that_failed_is_repeated_without_a_request(site: Site, tmp_path: Path) -> None:
    """The archive is in order, but no disk accepts the name of one of its files."""
    content = zip_of(("a.png", b"one"), ("x" * 300, b"two"))
    site.answers = [serves(content)]
    for _ in range(2):
        with pytest.raises(DataError, match="File name too long"):
            get(archive_of(site, content), tmp_path)
        assert visible(tmp_path) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == [".downloads"]
    assert len(site.requests) == 1


def test_what_a_killed_process_left_half_unpacked_is_removed(site: Site, tmp_path: Path) -> None:
    content = zip_of(("a.png", b"one"))
    site.answers = [serves(content)]
    (tmp_path / ".set.unpacking").mkdir()
    (tmp_path / ".set.unpacking" / "half.png").touch()
    assert visible(get(archive_of(site, content), tmp_path)) == ["a.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".downloads", "set"]


# ---- the sets and the URLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_known_set_has_all_that_is_needed_to_trust_it(name: str) -> None:
    download = DOWNLOADS[name]
    assert download.name == name
    assert len(bytes.fromhex(download.sha256 or "")) == hashlib.sha256().digest_size
    assert download.url.startswith("https://")
    assert all((download.bytes, download.licence, download.source))
    assert all(f"{each}: DIR/{download.folder}/{each}" in download.usage_of(name) for each in download.sets)
    assert "DIR/" in download.usage_of(name)
    assert [each.name for each in DOWNLOADS.values() if each.folder == download.folder] == [name]
    assert all(DOWNLOAD_OF_SET[each] is download for each in (name, *download.sets))


def test_the_archives_of_div2k_make_a_folder_that_is_recognised(site: Site, tmp_path: Path) -> None:
    names = {
        "DIV2K_train_HR": "DIV2K_train_HR/0001.png",
        "DIV2K_train_LR_bicubic_X2": "DIV2K_train_LR_bicubic/X2/0001x2.png",
        "DIV2K_train_LR_bicubic_X3": "DIV2K_train_LR_bicubic/X3/0001x3.png",
    }
    for archive, name in names.items():
        content = zip_of((name, b"picture"))
        site.requests.clear()
        site.answers = [serves(content)]
        size, sha256 = len(content), hashlib.sha256(content).hexdigest()
        url = site.url.replace("set", archive)
        get(dataclasses.replace(DOWNLOADS[archive], url=url, bytes=size, sha256=sha256), tmp_path)
    for scale in (2, 3):
        (found,) = locate(tmp_path / "DIV2K", "train", scale)
        assert found.input == tmp_path / "DIV2K" / "DIV2K_train_LR_bicubic" / f"X{scale}" / f"0001x{scale}.png"


@pytest.mark.parametrize(
    ("url", "unpacking", "folder"),
    [
        ("https://host/Set5.zip", "zip", "Set5"),
        ("http://host/a/Set5_HR.tar.gz?download=true", "tar", "Set5_HR"),
        ("https://host/Set%2014.TGZ", "tar", "Set 14"),
        ("https://host/kodim01.png", "none", "kodim01.png"),
        ("https://host/v1.0.tar", "tar", "v1.0"),
    ],
)
def test_the_ending_of_a_url_says_how_to_unpack(url: str, unpacking: str, folder: str) -> None:
    download = download_of(url, None)
    assert (download.unpack, download.folder) == (unpacking, folder)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/Set5.zip",
        "file:///etc/passwd",
        "https:///Set5.zip",
        "https://host",
        "https://host/",
        "https://host/..",
        "https://host/.zip",
        "https://host/%2e%2e%2fevil.zip/%2e%2e",
        "https://host/a%0ab.zip",
        "https://[host/a.zip",
        "https://\udcff/a.zip",
        "https://host\x1b/a.zip",
    ],
)
def test_a_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(DataError) as error:
        download_of(url, None)
    assert str(error.value).startswith(f"{printable(url)}: ")


@hypothesis.given(st.text(max_size=30), st.booleans())
def test_any_text_as_a_url_is_a_download_or_one_line(text: str, scheme: bool) -> None:
    with contextlib.suppress(DataError):
        download = download_of(f"https://{text}" if scheme else text, None)
        assert Path(download.folder).name == download.folder
        assert not download.folder.startswith(".")
        assert download.folder.isprintable()


def test_neither_a_password_nor_a_key_in_a_url_is_shown(
    site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    url = site.url.replace("://", "://me:secret@") + "?key=secret"
    content = zip_of(("a.png", b"one"))
    site.answers = [says(404), serves(content)]
    away = re.sub(r":\d+/", ":1/", url)
    with pytest.raises(DataError) as error:
        get(download_of(away, None), tmp_path)
    assert str(error.value).startswith("http://127.0.0.1:1/files/set.zip?...: given up")
    assert main(["fetch", url, "--to", str(tmp_path)]) == 1
    assert main(["fetch", url, "--to", str(tmp_path)]) == 0
    assert "secret" not in f"{error.value} {capfd.readouterr()} {caplog.text}"


# ---- the command -----------------------------------------------------------------------------------------------------


def test_list_shows_every_download_its_sets_and_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "sets", "size", "licence", "from", "checksum", "from"]
    for line, download in zip(lines[1:], DOWNLOADS.values(), strict=True):
        sets = ", ".join(download.sets or (download.name,))
        for shown in (download.name, sets, " MB ", download.licence, download.url, download.source):
            assert shown in line


def test_list_ends_quietly_if_its_reader_has_read_enough() -> None:
    command = [sys.executable, "-m", "bbcu.data", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_fetch_says_where_the_set_is_and_how_to_use_it(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = zip_of(("a.png", b"one"))
    site.answers = [serves(content)]
    sha256 = hashlib.sha256(content).hexdigest().upper()
    assert main(["fetch", site.url, "--to", str(tmp_path), "--sha256", sha256]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"set.zip is in {tmp_path}/set",
        f"use it: data=folder data.train={tmp_path}/set",
    ]


@pytest.fixture
def benchmark(site: Site, monkeypatch: pytest.MonkeyPatch) -> Download:
    """The download of the benchmarks, from the local server and with two of its sets."""
    content = zip_of(("benchmark/Set5/HR/baby.png", b"one"), ("benchmark/Set14/HR/baboon.png", b"two"))
    site.answers = [serves(content)]
    changes: dict[str, Any] = {"url": site.url, "unpack": "zip", "bytes": len(content)}
    changes["sha256"] = hashlib.sha256(content).hexdigest()
    found = dataclasses.replace(DOWNLOADS["benchmark"], **changes)
    for name in (found.name, *found.sets):
        monkeypatch.setitem(DOWNLOAD_OF_SET, name, found)
    return found


def test_a_set_in_an_archive_is_fetched_by_its_name(
    benchmark: Download, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Set5", "Set14"):
        assert main(["fetch", name, "--to", str(tmp_path)]) == 0
        place = tmp_path / "benchmark" / name
        assert (place / "HR").is_dir()
        assert capsys.readouterr().out.splitlines() == [
            f"{name} is in {place}, from benchmark",
            f"use it: data=folder data.train=FOLDER data.test='{{{name}: {place}}}'",
        ]
    assert len(site.requests) == 1


def test_a_set_that_is_missing_in_what_was_fetched_is_one_line(
    benchmark: Download, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "B100", "--to", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"data: {tmp_path}/benchmark: B100 is not in it")


def test_fetch_shows_one_line_where_it_fails(site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    site.answers = [says(404)]
    assert main(["fetch", site.url, "--to", str(tmp_path)]) == 1
    assert capfd.readouterr().err.splitlines() == [f"data: {site.url}: the server answered 404 Not Found"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmrk"], "data: unknown data set 'benchmrk' (did you mean benchmark?); valid: DIV2K_train_HR, "),
        (["benchmark", "--sha256", "0" * 64], "data: --sha256 goes with a URL; the checksum of benchmark is known"),
        (["https://host/a.zip", "--sha256", "12"], "data: --sha256 '12': needs 64 hexadecimal digits"),
    ],
    ids=["name", "checksum of a name", "checksum"],
)
def test_a_wrong_set_or_checksum_is_one_line_and_status_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["\x1b[31mfetch"], "argument COMMAND: invalid choice: "),
        (["list", "\x1b[31m\n\udcff"], r"unrecognized arguments: \x1b[31m\n\udcff"),
        (["fetch"], "the following arguments are required: NAME|URL"),
        (["check"], "the following arguments are required: DIR"),
        (["check", ".", "--patch", "x"], "argument --patch: invalid int value: 'x'"),
        (["check", ".", "--patch", "0"], "--patch 0: needs at least 1 pixel"),
        (["check", ".", "--task", "x"], "argument --task: invalid choice: 'x'"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("data: ", "python -m bbcu.data"))
    assert f": {message}" in line
    assert line.isprintable()

"""Unpacking archives that are not trusted: what is refused, and that nothing is written outside the folder."""

import contextlib
import gzip
import io
import lzma
import multiprocessing
import os
import signal
import stat
import struct
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bbcu.data import archives
from bbcu.data.archives import Kind, unpack
from bbcu.data.unpacking import extract
from bbcu.errors import DataError
from tests.harness.support import wait_until

CONTENT = np.random.default_rng(1).bytes(20_000)


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def tar_entry(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    return entry


def unpacked(tmp_path: Path, kind: Kind, content: bytes, member: str | None = None) -> list[str]:
    """The files in an archive's folder after it was unpacked, which lies two folders deep."""
    (tmp_path / "archive").write_bytes(content)
    folder = tmp_path / "deep" / "set"
    folder.mkdir(parents=True)
    unpack(tmp_path / "archive", kind, member, folder)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refusal(tmp_path: Path, kind: Kind, content: bytes, member: str | None = None) -> str:
    """Why an archive is refused; nothing may be written outside its folder."""
    with pytest.raises(DataError) as error:
        unpacked(tmp_path, kind, content, member)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set"]
    return str(error.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_may_have_any_compression(tmp_path: Path, mode: str) -> None:
    assert unpacked(tmp_path, "tar", tar_of(("a.png", b"one"), mode=mode)) == ["a.png"]
    assert (tmp_path / "deep" / "set" / "a.png").read_bytes() == b"one"


def test_only_the_wanted_folder_of_an_archive_is_unpacked(tmp_path: Path) -> None:
    content = zip_of(("code/a.m", b"code"), ("data/images/a.png", b"one"), ("data/imagesnot/b.png", b"two"))
    assert unpacked(tmp_path, "zip", content, "data/images") == ["a.png"]


@pytest.mark.parametrize(
    ("kind", "content", "member", "message"),
    [
        pytest.param("zip", zip_of(("a.png", b"one")), "data", "the archive has no folder data", id="no folder"),
        pytest.param("zip", zip_of(("data/", b"")), "data", "the archive has no folder data", id="zip, empty folder"),
        pytest.param(
            "tar",
            tar_of((tar_entry("data", tarfile.DIRTYPE), b"")),
            "data",
            "the archive has no folder data",
            id="tar, empty folder",
        ),
        pytest.param("zip", zip_of(), None, "the archive is empty", id="empty"),
    ],
)
def test_an_archive_without_the_set_is_refused(
    tmp_path: Path, kind: Kind, content: bytes, member: str | None, message: str
) -> None:
    assert refusal(tmp_path, kind, content, member) == message


LEADS_OUT = ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "C:\\evil.png", "..\\evil.png"]
IMAGE = ("a.png", b"one")
HOSTILE = [
    *(pytest.param("zip", zip_of(IMAGE, (name, b"evil")), name, id=f"zip {name}") for name in LEADS_OUT),
    *(pytest.param("tar", tar_of(IMAGE, (name, b"evil")), name, id=f"tar {name}") for name in LEADS_OUT),
    pytest.param(
        "zip",
        zip_of((zip_entry("link", stat.S_IFLNK | 0o777), b"/etc"), ("link/evil.png", b"evil")),
        "link",
        id="zip symbolic link out",
    ),
    pytest.param("zip", zip_of((zip_entry("pipe", stat.S_IFIFO | 0o666), b"")), "pipe", id="zip pipe"),
    *(
        pytest.param("tar", tar_of(IMAGE, (entry, b"")), entry.name, id=f"tar {what}")
        for what, entry in [
            ("symbolic link to an absolute path", tar_entry("link1", tarfile.SYMTYPE, "/etc/passwd")),
            ("symbolic link out", tar_entry("link2", tarfile.SYMTYPE, "../../evil")),
            ("symbolic link inside", tar_entry("link3", tarfile.SYMTYPE, "a.png")),
            ("hard link to an absolute path", tar_entry("link4", tarfile.LNKTYPE, "/etc/passwd")),
            ("hard link out", tar_entry("link5", tarfile.LNKTYPE, "../../evil")),
            ("hard link inside", tar_entry("link6", tarfile.LNKTYPE, "a.png")),
            ("device", tar_entry("device", tarfile.CHRTYPE)),
            ("pipe", tar_entry("pipe", tarfile.FIFOTYPE)),
        ]
    ),
    pytest.param("zip", zip_of(("a/b.png", b"one"), ("a", b"two")), "a", id="zip file over folder"),
    pytest.param("zip", zip_of(("a", b"one"), ("a/b.png", b"two")), "a/b.png", id="zip folder over file"),
    pytest.param("tar", tar_of(("a", b"one"), ("a", b"two")), "a", id="tar the same file twice"),
]


@pytest.mark.parametrize(("kind", "content", "name"), HOSTILE)
def test_an_unsafe_entry_is_refused_by_name(tmp_path: Path, kind: Kind, content: bytes, name: str) -> None:
    assert refusal(tmp_path, kind, content).startswith(f"the archive holds {name!a}")
    assert not list(tmp_path.rglob("evil*"))


def test_a_link_beside_the_wanted_folder_is_ignored_unless_it_leads_out(tmp_path: Path) -> None:
    image = ("images/a.png", b"one")
    harmless = tar_of(image, (tar_entry("code/latest", tarfile.SYMTYPE, "v1"), b""))
    leading_out = tar_of(image, (tar_entry("code/latest", tarfile.SYMTYPE, "../../v1"), b""))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert unpacked(tmp_path / "one", "tar", harmless, "images") == ["a.png"]
    assert "code/latest" in refusal(tmp_path / "two", "tar", leading_out, "images")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    half = archives.SMALLEST_LIMIT // 2
    content = zip_of(("a.png", bytes(half)), ("b.png", bytes(half + 1)))
    assert len(content) * archives.MOST_EXPANSION < archives.SMALLEST_LIMIT
    assert refusal(tmp_path, "zip", content) == "the archive unpacks to more than is allowed"


def test_empty_files_count_towards_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALLEST_LIMIT", 0)
    content = tar_of(*((f"{number}.png", b"") for number in range(1000)))
    assert refusal(tmp_path, "tar", content) == "the archive unpacks to more than is allowed"
    most = archives.MOST_EXPANSION * len(content) // archives.SMALLEST_ENTRY
    assert len(list((tmp_path / "deep" / "set").iterdir())) == most


def test_an_entry_longer_than_its_stated_size_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of(("a.png", CONTENT)))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    assert refusal(tmp_path, "zip", bytes(content)).startswith("the archive cannot be read: ")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        pytest.param("zip", zip_of(("a.png", CONTENT))[:-100], id="zip cut"),
        pytest.param("zip", zip_of(("a.png", CONTENT)).replace(CONTENT[5000:5010], bytes(10)), id="zip changed"),
        pytest.param("zip", b"<html>Please sign in.</html>", id="not a zip"),
        pytest.param("zip", b"", id="empty zip"),
        *(
            pytest.param("tar", tar_of(("a.png", CONTENT), mode=mode)[:10_000], id=f"tar {mode} cut")
            for mode in ("w", "w:gz", "w:xz", "w:bz2")
        ),
        pytest.param("tar", b"<html>Please sign in.</html>", id="not a tar"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, kind: Kind, content: bytes) -> None:
    assert refusal(tmp_path, kind, content).startswith("the archive cannot be read: ")


# ---- archives that attack the parsers --------------------------------------------------------------------------------


def extended(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """The blocks of an extended header of a tar, which may state another size than it has."""
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, len(content) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def attacking(blocks: bytes) -> bytes:
    """A compressed tar of some blocks and a picture."""
    return gzip.compress(blocks + tar_of(("a.png", b"one"), mode="w"))


DIGITS = attacking(extended(tarfile.XHDTYPE, b"1" * 10**6))
"""Of a kilobyte; tarfile of Python 3.11.7 searches it with a regular expression that takes quadratic time."""


def test_a_header_that_keeps_the_parser_busy_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SECONDS", 1)
    assert len(DIGITS) < 1500
    assert refusal(tmp_path, "tar", DIGITS).startswith("the archive cannot be read: ")


def unpack_digits(folder: Path) -> None:
    (folder / "archive").write_bytes(DIGITS)
    (folder / "set").mkdir()
    with contextlib.suppress(KeyboardInterrupt):
        unpack(folder / "archive", "tar", None, folder / "set")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_unpacks_ends_with_the_one_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(archives, "SECONDS", 10_000)

    process = multiprocessing.get_context("fork").Process(target=unpack_digits, args=(tmp_path,))
    process.start()
    try:
        wait_until(lambda: unpacking_child_of(process.pid) is not None, "the unpacking process runs")
        unpacking = unpacking_child_of(process.pid)
        os.kill(process.pid or 0, stop)
    finally:
        process.join(60)
        process.kill()

    def is_gone() -> bool:
        try:
            return "(zombie)" in Path(f"/proc/{unpacking}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(is_gone, "the unpacking process is gone")


def test_a_process_that_was_killed_while_it_unpacked_does_not_condemn_the_archive(tmp_path: Path) -> None:
    """The kernel kills it where memory is short; the archive can be tried again."""
    (tmp_path / "archive").write_bytes(DIGITS)
    (tmp_path / "set").mkdir()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        killing = pool.apply_async(kill_child_of, (os.getpid(),))
        with pytest.raises(OSError, match="was killed"):
            unpack(tmp_path / "archive", "tar", None, tmp_path / "set")
        killing.get()


def kill_child_of(parent: int) -> None:
    wait_until(lambda: unpacking_child_of(parent) is not None, "the unpacking process runs")
    os.kill(unpacking_child_of(parent) or 0, signal.SIGKILL)


def unpacking_child_of(parent: int | None) -> int | None:
    """The number of the process that unpacks for another, once it runs its program."""
    for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"bbcu.data.unpacking" in Path(f"/proc/{number}/cmdline").read_bytes():
                return int(number)
    return None


MEMORY = 2**27
ZEROS = bytes(MEMORY)


def of_wide_dictionary() -> bytes:
    """An LZMA stream that asks for a dictionary of 4 GiB."""
    content = lzma.compress(tar_of(("a.png", b"one"), mode="w"), lzma.FORMAT_ALONE)
    return content[:1] + b"\xff" * 4 + content[5:]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: attacking(extended(tarfile.XHDTYPE, ZEROS)), id="a PAX header"),
        pytest.param(lambda: attacking(extended(tarfile.XGLTYPE, ZEROS)), id="a global PAX header"),
        pytest.param(lambda: attacking(extended(tarfile.GNUTYPE_LONGNAME, ZEROS)), id="a GNU name"),
        pytest.param(lambda: extended(tarfile.GNUTYPE_LONGLINK, b"", 2**33 - 1), id="a stated size"),
        pytest.param(of_wide_dictionary, id="a dictionary"),
    ],
)
def test_an_archive_that_needs_more_memory_than_is_allowed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]
) -> None:
    monkeypatch.setattr(archives, "MEMORY", MEMORY)
    expected = "the archive cannot be read: it takes more memory than is allowed"
    assert refusal(tmp_path, "tar", make()) == expected


def sparse(size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("a.png")
    entry.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": "0,3"}
    return entry


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *(
            pytest.param("tar", tar_of(("a.png", bytes(2**20)), mode=f"w:{mode}"), id=f"{mode} of zeros")
            for mode in ("gz", "bz2", "xz")
        ),
        pytest.param("tar", tar_of((sparse(2**60), b"one")), id="sparse file"),
        pytest.param("zip", zip_of(("a.png", bytes(2**20))), id="zip of zeros"),
    ],
)
def test_a_bomb_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, content: bytes
) -> None:
    monkeypatch.setattr(archives, "SMALLEST_LIMIT", 0)
    assert refusal(tmp_path, kind, content) == "the archive unpacks to more than is allowed"
    assert not list((tmp_path / "deep" / "set").iterdir())


def overlapping(entries: int) -> bytes:
    """A zip whose entries are all the same compressed bytes, each under its own name in the directory."""
    content = zip_of(("000.png", bytes(2**20)))
    start = content.rindex(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    directory = b"".join(content[start:end].replace(b"000.png", b"%03d.png" % number) for number in range(entries))
    closing = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, len(directory), start, 0)
    return content[:start] + directory + closing


def of_many_entries() -> bytes:
    """A zip64 that states 2^63 entries in a directory of as many bytes."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *[2**63] * 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    return record + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", *[0xFFFF] * 4, *[0xFFFFFFFF] * 2, 0)


@pytest.mark.parametrize(
    "content", [pytest.param(overlapping(100), id="overlapping"), pytest.param(of_many_entries(), id="2^63 entries")]
)
def test_a_zip_whose_directory_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, "zip", content).startswith("the archive ")


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a" * 10**6, "a/" * 80 + "b.png", "../" + "a" * 10**6], ids=["long", "deep", "out"])
def test_a_name_without_end_is_refused_in_a_short_line(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, "tar", tar_of((name, b"one")))
    assert message.startswith(f"the archive holds '{name[:100]}")
    assert len(message) < 500


def test_folders_count_towards_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALLEST_LIMIT", 60 * archives.SMALLEST_ENTRY)
    monkeypatch.setattr(archives, "MOST_EXPANSION", 0)
    content = tar_of(*((f"{number}/" + "a/" * 18 + "b.png", b"one") for number in range(4)))
    assert refusal(tmp_path, "tar", content) == "the archive unpacks to more than is allowed"
    assert len(list((tmp_path / "deep" / "set").iterdir())) == 3


ODD = ["A.png", "a.png", "b. ", "b.", "line\nfeed.png", "\x1b[31mred.png"]
ODD += [unicodedata.normalize(form, "\N{LATIN SMALL LETTER E WITH ACUTE}.png") for form in ("NFC", "NFD")]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_are_kept_as_they_are(tmp_path: Path, kind: Kind) -> None:
    content = (zip_of if kind == "zip" else tar_of)(*((name, name.encode()) for name in ODD))
    assert unpacked(tmp_path, kind, content) == sorted(ODD)
    for name in ODD:
        assert (tmp_path / "deep" / "set" / name).read_bytes() == name.encode()


def test_a_tar_in_several_gzip_streams_is_whole(tmp_path: Path) -> None:
    content = tar_of(("a.png", CONTENT), ("b.png", b"two"), mode="w")
    assert unpacked(tmp_path, "tar", gzip.compress(content[:5000]) + gzip.compress(content[5000:])) == [
        "a.png",
        "b.png",
    ]
    assert (tmp_path / "deep" / "set" / "a.png").read_bytes() == CONTENT


# ---- any bytes at all ------------------------------------------------------------------------------------------------

FILES = {"set/a.png": CONTENT[:3000], "set/deep/b.png": b"two"}
VALID: dict[str, tuple[Kind, bytes]] = {
    "zip": ("zip", zip_of(*FILES.items())),
    **{mode: ("tar", tar_of(*FILES.items(), mode=mode)) for mode in ("w", "w:gz", "w:bz2", "w:xz")},
}


@st.composite
def archives_of_any_kind(draw: st.DrawFn) -> tuple[Kind, bytes]:
    """Random bytes, or a valid archive that was cut, or has some bytes replaced, removed or put in."""
    kind, content = VALID[draw(st.sampled_from(sorted(VALID)))]
    if draw(st.integers(0, 9)) == 0:
        return kind, draw(st.binary(max_size=2000))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        removed = draw(st.sampled_from([0, 1, 4, 512, len(content)]))
        content = content[:place] + draw(st.binary(max_size=8)) + content[place + removed :]
    return kind, content


@hypothesis.given(archives_of_any_kind())
def test_a_changed_archive_is_unpacked_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, archive: tuple[Kind, bytes]
) -> None:
    kind, content = archive
    place = tmp_path_factory.mktemp("changed")
    (place / "archive").write_bytes(content)
    (place / "deep" / "set").mkdir(parents=True)
    message = ""
    try:
        # In this process, since starting one takes most of the time; the content is too short for an attack.
        extract(place / "archive", kind, None, place / "deep" / "set", most=2**20)
    except DataError as error:
        message = str(error)
    except OSError:  # a changed name may be too long for the disk
        pass
    assert message.isprintable()
    assert len(message) < 1000
    assert sorted(path.name for path in place.iterdir()) == ["archive", "deep"]
    assert [path.name for path in (place / "deep").iterdir()] == ["set"]
    for path in place.rglob("*"):
        assert path.is_dir() or stat.S_ISREG(path.lstat().st_mode)

"""Unpacking archives that are not trusted: what is refused, and that nothing is written outside the folder."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bbcu.data import archives
from bbcu.data.archives import Kind, unpack
from bbcu.errors import DataError

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

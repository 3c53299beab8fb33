"""Any text as ``hydra.sweeper.storage`` is a storage, or is refused in one line that has no password."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ablations.search.options import SearchOptions
from ablations.search.storages import opened
from bbcu.errors import BbcuError
from tests.harness.servers import free_port

TEXT = st.text(st.characters(exclude_characters="/"), max_size=20)
AWAY = f"postgresql+psycopg2://me:hidden@127.0.0.1:{free_port()}/"


@given(st.sampled_from(["", "sqlite:///no/", "foo://", "postgresql://", "postgresql+psycopg2://u:abc[d@", AWAY]), TEXT)
@example("", "\0.log")
@example("", "\udcff.log")
@example("", f"{'x' * 300}.log")
@example("", "\x1b]0;title\x07.log")
@settings(max_examples=25)
def test_any_text_is_a_storage_or_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        options = SearchOptions(1, start + text, "study")
        with opened(options.storage) as (backend, _):
            backend.release_worker_lock()
    except BbcuError as error:
        refusal = str(error)
        assert refusal.isprintable()
        assert "hidden" not in refusal


@pytest.mark.parametrize("storage", ["search.log", "sqlite:///search.log"])
def test_a_storage_that_is_no_file_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("search.log")
    with pytest.raises(BbcuError, match="is not a file"), opened(storage):
        pass

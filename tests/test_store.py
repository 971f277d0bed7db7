"""The store keeps what it is given, whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import pwd
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from educe import store as stores
from educe.errors import OptionError
from educe.store import Key, Store

KEY = Key("kernel", "gemm_1", (("target", "avx2"), ("llvm", "22")))


def test_content_is_found_by_its_key(tmp_path: Path):
    store = Store(tmp_path, 10**6)
    assert store.get(KEY) is None
    store.put(KEY, b"\x00code\n\xff")
    assert store.get(KEY) == b"\x00code\n\xff"
    assert store.get(Key("kernel", "gemm_1", (("target", "avx512"), ("llvm", "22")))) is None
    (entry,) = store.entries()
    assert entry.key == KEY


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + b"?",
        lambda content: b"",
        lambda content: b"{}\n" + content,
        lambda content: content.replace(b"sha256", b"sha257"),
        lambda content: os.urandom(len(content)),
    ],
)
def test_a_damaged_entry_counts_as_missing_and_is_replaced(tmp_path: Path, change):
    store = Store(tmp_path, 10**6)
    store.put(KEY, b"code")
    (entry,) = store.entries()
    entry.path.write_bytes(change(entry.path.read_bytes()))
    assert store.get(KEY) is None
    store.put(KEY, b"code")
    assert store.get(KEY) == b"code"


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b"7",
        b"null",
        b"[" * 50_000,
        json.dumps({"kind": "kernel", "name": "n", "ingredients": [[{}, 1]]}).encode(),
        json.dumps({"kind": "kernel", "name": "n", "ingredients": 3}).encode(),
        json.dumps({"kind": 1, "name": ["n"], "ingredients": [], "digest": "", "sha256": ""}).encode(),
    ],
)
def test_a_header_that_is_none_counts_as_no_entry(tmp_path: Path, header: bytes):
    store = Store(tmp_path, 10**6)
    store.put(KEY, b"code")
    (entry,) = store.entries()
    entry.path.write_bytes(header + b"\ncode")
    assert store.entries() == []
    assert store.get(KEY) is None


def test_what_another_process_is_writing_is_no_entry(tmp_path: Path):
    store = Store(tmp_path, 10**6)
    store.put(KEY, b"code")
    (entry,) = store.entries()
    entry.path.with_name(".new-abc").write_bytes(entry.path.read_bytes())
    assert store.entries() == [entry]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, caplog):
    store = Store(tmp_path, 10**6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        store.put(KEY, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be kept" in caplog.text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_store_stays_within_its_bound_and_the_oldest_go_first(tmp_path: Path):
    store = Store(tmp_path, 50_000)
    for number in range(20):
        key = Key("kernel", f"k{number}", ())
        store.put(key, bytes(5000))
        path = store._path(key)
        if path.exists():
            os.utime(path, (number, number))
    kept = {entry.key.name for entry in store.entries()}
    assert sum(entry.size_bytes for entry in store.entries()) <= 50_000
    assert "k19" in kept
    assert "k0" not in kept


def test_a_miss_is_explained_by_what_differs(tmp_path: Path):
    store = Store(tmp_path, 10**6)
    assert store.explain(KEY) == "never made"
    store.put(Key("kernel", "gemm_1", (("target", "avx2"), ("llvm", "21"))), b"old")
    assert store.explain(KEY) == "made again: llvm was '21', is '22'"
    store.put(KEY, b"new")
    assert store.explain(KEY) == "stored"
    assert store.clear() == 2
    assert store.explain(KEY) == "never made"


def test_a_store_that_cannot_be_written_is_left_as_it_is(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file", 10**6)
    store.put(KEY, b"code")
    assert store.get(KEY) is None
    store.put(KEY, b"code")
    assert caplog.text.count("cannot be kept") == 1


def _write(root: str, number: int) -> None:
    store = Store(Path(root), 10**7)
    for turn in range(30):
        key = Key("kernel", f"k{turn % 5}", ())
        content = bytes([turn % 5]) * 20_000
        store.put(key, content)
        found = store.get(key)
        assert found in (None, content), number


def test_processes_share_a_store(tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_write, args=(str(tmp_path), number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not list(tmp_path.glob("*/*/.new-*"))


def test_the_settings_choose_the_store(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("EDUCE_CACHE", str(tmp_path))
    chosen = stores.store()
    assert chosen is not None
    assert chosen.root == tmp_path
    monkeypatch.setenv("EDUCE_CACHE", "off")
    assert stores.store() is None
    monkeypatch.setenv("EDUCE_CACHE", "")
    for wrong in ("much", "-1", "9" * 5000):
        monkeypatch.setenv("EDUCE_CACHE_BYTES", wrong)
        with pytest.raises(OptionError, match=f"EDUCE_CACHE_BYTES='{wrong}'"):
            stores.store()


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home folder, as containers have."""

    def unknown(_user: int) -> None:
        raise KeyError

    for variable in ("HOME", "XDG_CACHE_HOME", "EDUCE_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_a_folder_can_be_chosen(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("EDUCE_CACHE", str(tmp_path))
    assert stores.store().root == tmp_path
    monkeypatch.delenv("EDUCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stores.store().root == tmp_path / "educe"


@pytest.mark.usefixtures("homeless")
def test_without_a_home_nothing_is_kept(caplog):
    assert stores.store() is None
    assert "EDUCE_CACHE" in caplog.text


def test_a_cache_home_that_is_relative_is_passed_over(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("EDUCE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert stores.store().root == tmp_path / ".cache" / "educe"


CONTENT = np.arange(8192, dtype=np.uint64).view(np.uint8)
WEIGHTS = Key("weights", "model", (("files", "a"), ("precision", "int8")))


def mapped(store: Store, key: Key = WEIGHTS) -> tuple[np.ndarray | None, int]:
    """Return the content, and how often it was made."""
    made = []

    def make(write: stores.Write) -> None:
        made.append(1)
        write(4096, CONTENT[4096:])
        write(0, CONTENT[:4096].view(np.float32))

    return store.mapped(key, CONTENT.nbytes, make), len(made)


def test_mapped_content_is_made_once_and_begins_a_page(tmp_path: Path):
    store = Store(tmp_path, 10**6)
    for expected in (1, 0, 0):
        found, made = mapped(store)
        assert found is not None
        np.testing.assert_array_equal(found, CONTENT)
        assert made == expected
        assert not found.flags.writeable
        assert found.ctypes.data % 4096 == 0
    assert mapped(store, Key("weights", "model", (("files", "b"), ("precision", "int8"))))[1] == 1
    assert {entry.key.kind for entry in store.entries()} == {"weights"}
    assert store.explain(WEIGHTS) == "stored"
    assert store.clear() == 2
    assert mapped(store)[1] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + bytes(8),
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:-4096] + bytes(4096),
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content.replace(b"\n", b" ", 1),
        lambda content: b"{" * 100_000 + content,
        lambda content: os.urandom(len(content)),
    ],
)
def test_mapped_content_that_is_not_whole_is_made_again(tmp_path: Path, change):
    store = Store(tmp_path, 10**6)
    mapped(store)
    (entry,) = store.entries()
    entry.path.write_bytes(change(entry.path.read_bytes()))
    for expected in (1, 0):
        found, made = mapped(store)
        np.testing.assert_array_equal(found, CONTENT)
        assert made == expected


@pytest.mark.parametrize(
    "array", [np.arange(999, dtype=np.int8).reshape(3, 333), np.ones((2, 5, 7), "f4")[:, ::2]]
)
def test_an_array_is_interned_by_its_content(tmp_path: Path, array: np.ndarray):
    store = Store(tmp_path, 10**6)
    for _ in range(2):
        found = store.interned(array)
        assert found is not None
        np.testing.assert_array_equal(found, array, strict=True)
        assert found.flags.c_contiguous
        assert not found.flags.writeable
        assert len(store.entries()) == 1
    for other in (array + array.dtype.type(1), array.T, array.astype("f8")):
        np.testing.assert_array_equal(store.interned(other), other, strict=True)
    assert len(store.entries()) == 4
    assert Store(tmp_path, 10).interned(array * array.dtype.type(3)) is None


def test_what_fails_while_it_is_made_leaves_nothing(tmp_path: Path):
    def make(write: stores.Write) -> None:
        write(0, CONTENT)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Store(tmp_path, 10**6).mapped(WEIGHTS, CONTENT.nbytes, make)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_of_several_that_need_content_one_makes_it(tmp_path: Path):
    made, all_miss = [], threading.Barrier(3)

    def ask() -> np.ndarray | None:
        def make(write: stores.Write) -> None:
            made.append(1)
            time.sleep(0.1)
            write(0, CONTENT)

        all_miss.wait(20)
        return Store(tmp_path, 10**6).mapped(WEIGHTS, CONTENT.nbytes, make)

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        for each in asked:
            np.testing.assert_array_equal(each.result(), CONTENT)
    assert len(made) == 1


def test_what_cannot_be_kept_is_not_mapped(tmp_path: Path):
    assert mapped(Store(tmp_path, CONTENT.nbytes - 1)) == (None, 0)
    (tmp_path / "weights").write_text("in the way")
    assert mapped(Store(tmp_path, 10**6)) == (None, 0)


def test_of_mapped_entries_the_least_used_go_first(tmp_path: Path):
    store = Store(tmp_path, 3 * CONTENT.nbytes)
    keys = [Key("weights", str(number), ()) for number in range(4)]
    for number, key in enumerate(keys[:2]):
        mapped(store, key)
        os.utime(store._path(key), (number, number))
    assert mapped(store, keys[0])[1] == 0
    mapped(store, keys[2])
    assert {entry.key.name for entry in store.entries()} == {"0", "2"}

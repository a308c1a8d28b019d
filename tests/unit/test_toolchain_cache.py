"""The content-addressed cache by itself."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sgl_kernel_rebuild.errors import ToolchainError
from sgl_kernel_rebuild.toolchain._cache import Cache, Entry
from sgl_kernel_rebuild.toolchain._files import sha256

REPORT = {"source": "norm.cu"}


def key(number: int) -> str:
    return f"{number:064x}"


def age(cache: Cache, number: int, seconds: float) -> None:
    (path,) = cache.directory.rglob(f"{key(number)}.entry")
    os.utime(path, (seconds, seconds))


def test_entry_comes_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.load(key(1)) is None
    entry = Entry(b"\n\0machine code\n", REPORT)
    cache.store(key(1), entry)
    assert cache.load(key(1)) == entry


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3500)
    for number in range(3):
        cache.store(key(number), Entry(bytes(1000), REPORT))
        age(cache, number, 1000.0 + number)
    assert cache.load(key(0)) is not None  # a hit makes the oldest the youngest
    cache.store(key(3), Entry(bytes(1000), REPORT))
    assert [cache.load(key(number)) is not None for number in range(4)] == [True, False, True, True]
    assert cache.status().size <= cache.limit


def test_entry_above_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=100)
    cache.store(key(1), Entry(bytes(1000), REPORT))
    assert cache.status().entries == 0


def test_temporary_file_of_a_dead_writer_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store(key(1), Entry(b"code", REPORT))
    folder = next(tmp_path.rglob("*.entry")).parent
    dead, alive = folder / f"{key(2)}.entry.tmp-1-aa", folder / f"{key(3)}.entry.tmp-2-bb"
    dead.write_bytes(b"half")
    alive.write_bytes(b"half")
    os.utime(dead, (1000.0, 1000.0))
    cache.store(key(4), Entry(b"code", REPORT))
    assert not dead.exists()
    assert alive.exists()


def test_concurrent_writers_and_readers(tmp_path: Path) -> None:
    # The bound holds fewer entries than are written, so eviction races with everything else.
    cache = Cache(tmp_path, limit=20_000)
    outputs = {number: bytes([number]) * 5000 for number in range(6)}

    def work(step: int) -> bool:
        number = step % len(outputs)
        cache.store(key(number), Entry(outputs[number], REPORT))
        entry = cache.load(key(number))
        return entry is None or entry.output == outputs[number]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(120)))
    assert not list(tmp_path.rglob("*.tmp-*"))
    cache.store(key(9), Entry(b"last", REPORT))
    assert cache.status().size <= cache.limit


def test_clear_leaves_foreign_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store(key(1), Entry(b"code", REPORT))
    foreign = tmp_path / "v1" / "00" / "notes.txt"
    foreign.write_text("keep")
    cache.clear()
    assert cache.status().entries == 0
    assert foreign.exists()


def test_environment_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SGLK_CACHE_LIMIT_MB", "7")
    assert Cache.from_environment() == Cache(tmp_path, 7 << 20)


def test_default_is_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLK_CACHE_DIR", raising=False)
    monkeypatch.delenv("SGLK_CACHE_LIMIT_MB", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = Cache.from_environment()
    assert cache.directory.parts[-2:] == ("sgl-kernel-rebuild", "device")
    assert cache.limit == 512 << 20


@pytest.mark.parametrize("limit", ["-1", "lots", "1.5", "²"])
def test_bound_that_is_no_number(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("SGLK_CACHE_LIMIT_MB", limit)
    with pytest.raises(ToolchainError, match="SGLK_CACHE_LIMIT_MB: expected a whole number of megabytes"):
        Cache.from_environment()


def test_entry_whose_report_is_no_json_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store(key(1), Entry(b"code", REPORT))
    (path,) = tmp_path.rglob("*.entry")
    rest = b"no report\ncode"
    path.write_bytes(sha256(rest).encode() + b"\n" + rest)
    assert cache.load(key(1)) is None


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        cache.store(key(1), Entry(b"code", REPORT))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_clear_of_what_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    cache = Cache(tmp_path)
    cache.store(key(1), Entry(b"code", REPORT))
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ToolchainError, match=r"cache: .*\.entry: cannot be removed: Permission denied"):
        cache.clear()

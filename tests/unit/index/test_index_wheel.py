"""What counts as a wheel: every check has a file that fails it, and damaged files never crash the reader."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sgl_kernel_rebuild.errors import BinaryError, FactoryError, PublishError
from sgl_kernel_rebuild.index._wheel import read_wheel


def test_reads_name_hashes_and_metadata(make_wheel):
    path = make_wheel("Demo_Pkg", "1.0+cu128.1", requires_python=">=3.10,\n <4")
    wheel = read_wheel(path)
    assert wheel.entry.filename == "Demo_Pkg-1.0+cu128.1-py3-none-any.whl"
    assert wheel.entry.url == "../../Demo_Pkg-1.0%2Bcu128.1-py3-none-any.whl"
    assert wheel.entry.project == "demo-pkg"
    assert str(wheel.entry.version) == "1.0+cu128.1"
    assert [str(tag) for tag in wheel.entry.tags] == ["py3-none-any"]
    assert wheel.entry.size == path.stat().st_size
    assert wheel.entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert wheel.entry.requires_python == ">=3.10, <4"
    assert wheel.entry.metadata_sha256 == hashlib.sha256(wheel.metadata).hexdigest()
    assert wheel.metadata.startswith(b"Metadata-Version: 2.1\nName: Demo_Pkg\n")


def test_requires_python_is_optional(make_wheel):
    assert read_wheel(make_wheel(requires_python=None)).entry.requires_python is None


@pytest.mark.parametrize(
    "filename",
    [
        "demo_pkg.whl",
        "demo_pkg-1.0.tar.gz",
        "demo_pkg-1.0-py3-none-any.zip",
        "demo_pkg-not.a.version-py3-none-any.whl",
        "demo_pkg-1.0-x-py3-none-any.whl",
        "demo_pkg-1.0-py3-none-any extra.whl",
        'demo_pkg-1.0-py3-none-"><script>.whl',
        "demo_pkg-1.0-py3-none-ány.whl",
        ".demo_pkg-1.0-py3-none-any.whl",
        "demo_pkg_-1.0-py3-none-any.whl",
        "demo__pkg-1.0-py3-none-any.whl",
    ],
)
def test_refuses_a_name_that_is_no_wheels(make_wheel, filename):
    with pytest.raises(PublishError, match=r"expected a name like name-version-python-abi-platform\.whl"):
        read_wheel(make_wheel(filename=filename))


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(BinaryError, match="expected a readable file, got No such file"):
        read_wheel(tmp_path / "demo_pkg-1.0-py3-none-any.whl")


def test_refuses_a_folder_and_a_pipe(tmp_path):
    folder = tmp_path / "demo_pkg-1.0-py3-none-any.whl"
    folder.mkdir()
    pipe = tmp_path / "demo_pkg-2.0-py3-none-any.whl"
    os.mkfifo(pipe)
    for path in (folder, pipe):
        with pytest.raises(BinaryError, match=f"{path.name}: expected a regular file"):
            read_wheel(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>404</html>", b"\x7fELF" + bytes(60)])
def test_refuses_what_is_no_zip(tmp_path, content):
    path = tmp_path / "demo_pkg-1.0-py3-none-any.whl"
    path.write_bytes(content)
    with pytest.raises(BinaryError, match=f"{path.name}: expected a zip archive"):
        read_wheel(path)


def test_refuses_a_wrong_crc(make_wheel):
    path = make_wheel(code="VALUE = 1\n")
    path.write_bytes(path.read_bytes().replace(b"VALUE = 1", b"VALUE = 2"))
    with pytest.raises(BinaryError, match=r"got a wrong CRC in 'demo_pkg/__init__\.py'"):
        read_wheel(path)


def test_refuses_an_encrypted_member(make_wheel):
    path = make_wheel()
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # general purpose bit 0, APPNOTE 4.4.4
    path.write_bytes(content)
    with pytest.raises(BinaryError, match="expected a zip archive, got RuntimeError"):
        read_wheel(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_refuses_a_member_twice(make_wheel):
    path = make_wheel()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("demo_pkg-1.0.dist-info/METADATA", "Name: other\n")
    with pytest.raises(BinaryError, match=r"expected every member once, got .*METADATA' 2 times"):
        read_wheel(path)


def test_refuses_what_unpacks_to_more_than_deflate_can(make_wheel):
    path = make_wheel()
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24  # uncompressed size in the central directory, APPNOTE 4.3.12
    content[at : at + 4] = (0xF0000000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(BinaryError, match=r"expected at most .* bytes unpacked"):
        read_wheel(path)


def test_refuses_endless_metadata(make_wheel, monkeypatch):
    monkeypatch.setattr("sgl_kernel_rebuild.index._wheel._MAX_METADATA", 10)
    with pytest.raises(BinaryError, match="expected METADATA of at most 10 bytes"):
        read_wheel(make_wheel())


def test_refuses_a_wheel_without_metadata(make_wheel):
    with pytest.raises(BinaryError, match=r"expected demo_pkg-1\.0\.dist-info/METADATA, got no such member"):
        read_wheel(make_wheel(members={"demo_pkg-1.0.dist-info/METADATA": None}))


def test_refuses_two_dist_info_folders_and_none(make_wheel, tmp_path):
    with pytest.raises(BinaryError, match=r"expected one \.dist-info folder, got 2"):
        read_wheel(make_wheel(members={"other-1.0.dist-info/METADATA": b"Name: other\n"}))
    empty = tmp_path / "demo_pkg-1.0-py3-none-any.whl"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(BinaryError, match=r"expected one \.dist-info folder, got 0"):
        read_wheel(empty)


@pytest.mark.parametrize("dist_info", ["other-1.0.dist-info", "demo_pkg-2.0.dist-info", "demo_pkg.dist-info"])
def test_refuses_the_dist_info_of_another_wheel(make_wheel, dist_info):
    with pytest.raises(PublishError, match=r"\.dist-info folder: expected demo-pkg 1\.0, got"):
        read_wheel(make_wheel(dist_info=dist_info))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("Name: other\nVersion: 1.0\n", "METADATA Name: expected 'demo-pkg', got 'other'"),
        ("Version: 1.0\n", "METADATA Name: expected 'demo-pkg', got ''"),
        ("Name: demo_pkg\nName: demo_pkg\nVersion: 1.0\n", "METADATA name: expected one readable value"),
        ("Name: demo_pkg\nVersion: 1.1\n", "METADATA Version: expected '1.0', got '1.1'"),
        ("Name: demo_pkg\n", "METADATA Version: expected '1.0', got ''"),
        (
            "Name: demo_pkg\nVersion: 1.0\nRequires-Python: 3 or so\n",
            "METADATA Requires-Python: expected a version specifier, got '3 or so'",
        ),
        ("", "METADATA Name: expected 'demo-pkg'"),
    ],
)
def test_refuses_metadata_that_disagrees(make_wheel, metadata, message):
    with pytest.raises(PublishError, match=message):
        read_wheel(make_wheel(metadata=metadata))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_wheels_give_an_error_that_names_the_file(make_wheel, tmp_path, data):
    """Cut or changed anywhere: an error of ours, or (a byte that says nothing) the same name and version."""
    whole = make_wheel(folder=tmp_path / "whole").read_bytes()
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)), label="length")])
    for _ in range(data.draw(st.integers(0, 3), label="changes")):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = Path(tmp_path) / "demo_pkg-1.0-py3-none-any.whl"
    path.write_bytes(content)
    message = ""
    try:
        wheel = read_wheel(path)
    except FactoryError as err:
        message = str(err)
    else:
        assert (wheel.entry.project, str(wheel.entry.version)) == ("demo-pkg", "1.0")
    assert not message or path.name in message

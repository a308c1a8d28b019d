"""Wheels that lead out of themselves, swell, repeat or lie are refused by name; damage never crashes."""

from __future__ import annotations

import stat
import struct
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sgl_kernel_rebuild.errors import BinaryError
from sgl_kernel_rebuild.wheel import archive
from sgl_kernel_rebuild.wheel.archive import open_wheel, record_digest

NAME = "demo-1.0-py3-none-any.whl"
INFO = "demo-1.0.dist-info"


def write(path, members, compression=zipfile.ZIP_DEFLATED):
    """Write (name or ZipInfo, content) pairs as they are, doubles included."""
    with zipfile.ZipFile(path, "w", compression) as wheel:
        for name, data in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            wheel.writestr(info, data, compression)
    return path


def proper(**extra):
    members = {
        "demo/__init__.py": b"",
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **extra,
    }
    record = "".join(f"{name},{record_digest(data)},{len(data)}\n" for name, data in members.items())
    return [*members.items(), (f"{INFO}/RECORD", (record + f"{INFO}/RECORD,,\n").encode())]


def test_reads_a_wheel(tmp_path):
    with open_wheel(write(tmp_path / NAME, proper())) as wheel:
        assert (wheel.name, str(wheel.version), {str(tag) for tag in wheel.tags}) == (
            "demo",
            "1.0",
            {"py3-none-any"},
        )
        assert wheel.dist_info == INFO
        assert wheel.metadata.name == "demo"
        assert wheel.wheel_metadata["Tag"] == "py3-none-any"
        assert wheel.read("demo/__init__.py") == b""
        assert wheel.binaries == ()
        assert wheel.check_record() == []


def test_finds_shared_objects_by_content_and_by_name(tmp_path, make_wheel, library):
    path = make_wheel({"sgl_kernel/hidden.bin": library, "sgl_kernel/data.so.txt": b"text"})
    with open_wheel(path) as wheel:
        assert wheel.binaries == ("sgl_kernel/hidden.bin", "sgl_kernel/libsgl_kernel.so")
        names = [found.name for found, _ in wheel.shared_objects()]
    assert names == ["sgl_kernel/hidden.bin", "sgl_kernel/libsgl_kernel.so"]


def test_a_shared_object_that_is_none_is_named(make_wheel):
    with (
        open_wheel(make_wheel({"sgl_kernel/fake.so": b"not ELF at all"})) as wheel,
        pytest.raises(
            BinaryError, match=r"elf: sgl_kernel.*\.whl: sgl_kernel/fake\.so: expected an ELF file"
        ),
    ):
        list(wheel.shared_objects())


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up.py",
        "demo/../../up.py",
        "demo//twice.py",
        "./demo.py",
        "C:/demo.py",
        "demo\\win.py",
        "de\nmo.py",
    ],
)
def test_refuses_names_that_lead_elsewhere(tmp_path, name):
    path = write(tmp_path / NAME, [*proper(), (name, b"x")])
    with pytest.raises(BinaryError, match="expected a path within the wheel") as caught, open_wheel(path):
        pass
    assert repr(name) in str(caught.value)


def test_refuses_doubles(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write(tmp_path / NAME, [*proper(), ("demo/__init__.py", b"evil")])
    with (
        pytest.raises(BinaryError, match=r"member 'demo/__init__\.py': expected once, got 2 times"),
        open_wheel(path),
    ):
        pass


def test_refuses_links(tmp_path):
    link = zipfile.ZipInfo("demo/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write(tmp_path / NAME, [*proper(), (link, b"/etc/passwd")])
    with pytest.raises(BinaryError, match="expected a file, got a symbolic link"), open_wheel(path):
        pass


def test_refuses_other_compression(tmp_path):
    path = write(tmp_path / NAME, proper(), zipfile.ZIP_BZIP2)
    with pytest.raises(BinaryError, match="expected stored or deflated data"), open_wheel(path):
        pass


def test_refuses_encrypted_members(tmp_path):
    path = write(tmp_path / NAME, proper())
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = data.find(magic)
        flags = struct.unpack_from("<H", data, position + offset)[0]
        struct.pack_into("<H", data, position + offset, flags | 1)
    path.write_bytes(bytes(data))
    with pytest.raises(BinaryError, match="encrypted"), open_wheel(path):
        pass


def test_refuses_bombs(tmp_path, monkeypatch):
    path = write(tmp_path / NAME, proper(**{"demo/zeros.bin": b"\0" * (80 << 20)}))
    with pytest.raises(BinaryError, match="refused as a zip bomb"), open_wheel(path):
        pass
    monkeypatch.setattr(archive, "_MAX_MEMBERS", 3)
    with pytest.raises(BinaryError, match="expected at most 3 members"), open_wheel(path):
        pass


def test_refuses_members_beyond_the_limit_of_a_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MAX_READ", 10)
    with (
        open_wheel(write(tmp_path / NAME, proper(**{"demo/long.py": b"x" * 11}))) as wheel,
        pytest.raises(BinaryError, match=r"demo/long\.py: expected at most 10 bytes, got 11"),
    ):
        wheel.read("demo/long.py")


@pytest.mark.parametrize("name", ["demo.whl", "demo-1.0.whl", "demo-one-py3-none-any.whl", "demo.zip"])
def test_refuses_names_that_no_wheel_has(tmp_path, name):
    path = write(tmp_path / name, proper())
    with pytest.raises(BinaryError, match="expected name-version-python-abi-platform"), open_wheel(path):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "File is not a zip file"),
        (b"PK\x05\x06" + b"\0" * 10, "zip"),
        (b"hello" * 100, "File is not a zip file"),
    ],
)
def test_refuses_what_is_no_zip(tmp_path, content, message):
    path = tmp_path / NAME
    path.write_bytes(content)
    with pytest.raises(BinaryError, match=message), open_wheel(path):
        pass


def test_refuses_a_wheel_that_is_not_there(tmp_path):
    with pytest.raises(BinaryError, match="No such file"), open_wheel(tmp_path / NAME):
        pass


def test_an_error_of_the_caller_stays_what_it_is(tmp_path):
    path = write(tmp_path / NAME, proper())
    with pytest.raises(ValueError, match="mine"), open_wheel(path):
        raise ValueError("mine")


def test_refuses_a_wheel_of_two_minds(tmp_path):
    path = write(tmp_path / NAME, [*proper(), ("other-1.0.dist-info/METADATA", b"")])
    with open_wheel(path) as wheel, pytest.raises(BinaryError, match=r"expected one \.dist-info folder"):
        _ = wheel.dist_info


def test_refuses_metadata_that_is_none(tmp_path):
    members = proper(**{f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: demo\n"})
    with (
        open_wheel(write(tmp_path / NAME, members)) as wheel,
        pytest.raises(BinaryError, match=r"METADATA: .*version"),
    ):
        _ = wheel.metadata


def test_a_wrong_checksum_is_found(tmp_path):
    path = write(tmp_path / NAME, proper(**{"demo/a.py": b"VALUE = 1"}), zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"VALUE = 1", b"VALUE = 2"))
    with open_wheel(path) as wheel, pytest.raises(BinaryError, match=r"demo/a\.py: Bad CRC-32"):
        wheel.read("demo/a.py")


def record_violations(tmp_path, lines):
    members = [(name, data) for name, data in proper() if not name.endswith("RECORD")]
    path = write(tmp_path / NAME, [*members, (f"{INFO}/RECORD", "".join(lines).encode())])
    with open_wheel(path) as wheel:
        return [str(violation) for violation in wheel.check_record()]


def test_record_must_list_every_file_once_with_its_hash(tmp_path):
    lines = dict(proper())[f"{INFO}/RECORD"].decode().splitlines(keepends=True)
    assert record_violations(tmp_path, lines) == []
    assert record_violations(tmp_path, lines[1:]) == [
        "record: demo/__init__.py: in the wheel, but not listed"
    ]
    assert record_violations(tmp_path, [*lines, "ghost.py,sha256=AA,1\n"]) == [
        "record: ghost.py: listed, but not in the wheel"
    ]
    assert record_violations(tmp_path, [lines[0], *lines]) == [
        "record: demo/__init__.py: expected one line, got 2"
    ]
    (wrong,) = record_violations(tmp_path, [lines[0].replace(",0\n", ",7\n"), *lines[1:]])
    assert wrong.startswith("record: demo/__init__.py: expected sha256=")
    with pytest.raises(BinaryError, match="expected three fields a line"):
        record_violations(tmp_path, ["demo/__init__.py,x\n"])


def refusal(action, *arguments):
    """Return the message of the BinaryError that ``action`` ends with, or "" if it ends well."""
    try:
        action(*arguments)
    except BinaryError as err:
        return str(err)
    return ""


def read_everything(path):
    with open_wheel(path) as wheel:
        _ = wheel.metadata, wheel.wheel_metadata
        wheel.check_record()
        list(wheel.shared_objects())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_wheels_give_a_result_or_a_binary_error(tmp_path, library, data):
    path = tmp_path / NAME
    if not path.exists():
        write(path, proper(**{"demo/lib.so": library[:20000]}))
        (tmp_path / "whole").write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 10))):
        low = data.draw(st.sampled_from([0, max(0, len(damaged) - 600)]))
        damaged[data.draw(st.integers(low, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    path.write_bytes(bytes(damaged[:cut]))
    message = refusal(read_everything, path)
    assert NAME in message or not message


@pytest.mark.parametrize("name", ["METADATA", "WHEEL", "RECORD"])
def test_refuses_documents_that_are_no_text(tmp_path, name):
    members = [item for item in proper() if item[0] != f"{INFO}/{name}"]
    path = write(tmp_path / NAME, [*members, (f"{INFO}/{name}", b"\xff\xfe")])
    with pytest.raises(BinaryError, match=rf"{name}: expected UTF-8 text, got"), open_wheel(path) as wheel:
        wheel.read_text(f"{INFO}/{name}")


def test_refuses_a_record_that_is_no_csv(tmp_path):
    members = [item for item in proper() if item[0] != f"{INFO}/RECORD"]
    path = write(tmp_path / NAME, [*members, (f"{INFO}/RECORD", b"x" * 200_000 + b",,\n")])
    with (
        pytest.raises(BinaryError, match="RECORD: expected lines of path,hash,size, got"),
        open_wheel(path) as wheel,
    ):
        wheel.check_record()

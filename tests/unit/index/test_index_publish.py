"""Publishing: what lies there afterwards, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import traceback
from pathlib import Path

import pytest
from filelock import FileLock
from sgl_kernel_rebuild.errors import BinaryError, PublishError
from sgl_kernel_rebuild.index import _publish as module
from sgl_kernel_rebuild.index import interrupted, list_wheels, publish, validate


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "wheelhouse"


def test_publishes_wheels_metadata_and_pages(make_wheel, index, snapshot):
    wheel = make_wheel("Demo.Pkg", "1.0+cu128.1")
    (result,) = publish([wheel], index)
    assert result.is_new
    name = wheel.name
    files = snapshot(index)
    assert sorted(files) == [
        name,
        f"{name}.metadata",
        "index.html",
        "simple/demo-pkg/index.html",
        "simple/demo-pkg/index.json",
        "simple/index.html",
        "simple/index.json",
    ]
    assert files[name] == wheel.read_bytes()
    assert files[f"{name}.metadata"].startswith(b"Metadata-Version: 2.1\nName: Demo.Pkg\n")
    page = json.loads(files["simple/demo-pkg/index.json"])
    assert page["files"][0]["hashes"]["sha256"] == hashlib.sha256(files[name]).hexdigest()
    assert validate(index) == []
    assert interrupted(index) == []
    assert [entry.filename for entry in list_wheels(index)] == [name]


def test_pages_are_a_function_of_the_wheels(make_wheel, tmp_path, snapshot):
    wheels = [make_wheel(version=version) for version in ("1.0", "1.10", "1.9")] + [make_wheel("other")]
    publish(wheels, tmp_path / "at_once")
    for wheel in reversed(wheels):
        publish([wheel], tmp_path / "one_by_one")
    assert snapshot(tmp_path / "at_once") == snapshot(tmp_path / "one_by_one")
    assert [str(entry.version) for entry in list_wheels(tmp_path / "at_once")] == [
        "1.0",
        "1.9",
        "1.10",
        "1.0",
    ]


def test_the_same_bytes_again_change_nothing(make_wheel, index):
    wheel = make_wheel()
    publish([wheel], index)
    before = {path: path.stat() for path in index.rglob("*") if path.name != ".lock"}
    (result,) = publish([wheel], index)
    assert not result.is_new
    after = {path: path.stat() for path in index.rglob("*") if path.name != ".lock"}
    assert {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in before.items()} == {
        path: (stat.st_ino, stat.st_mtime_ns) for path, stat in after.items()
    }


def test_a_wheel_given_twice_is_one(make_wheel, index):
    wheel = make_wheel()
    assert len(publish([wheel, wheel], index)) == 1


def test_published_files_can_be_read_by_everyone(make_wheel, index):
    mask = os.umask(0o022)
    try:
        publish([make_wheel()], index)
    finally:
        os.umask(mask)
    assert {oct(path.stat().st_mode & 0o777) for path in index.rglob("*.*") if path.name != ".lock"} == {
        "0o644"
    }


def test_other_bytes_under_a_published_name_are_refused(make_wheel, index, snapshot):
    first, second = make_wheel(code="VALUE = 1\n"), make_wheel(code="VALUE = 2\n")
    publish([first], index)
    before = snapshot(index)
    with pytest.raises(PublishError, match="published files never change") as caught:
        publish([make_wheel("other"), second], index)
    for wheel in (first, second):
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() in str(caught.value)
    assert snapshot(index) == before


def test_a_published_wheel_that_was_changed_on_disk_is_found_out(make_wheel, index):
    wheel, other = make_wheel(code="VALUE = 1\n"), make_wheel(code="VALUE = 2\n")
    publish([wheel], index)
    (index / wheel.name).write_bytes(other.read_bytes())
    for offered in (wheel, other):
        with pytest.raises(PublishError, match="published files never change"):
            publish([offered], index)


def test_two_wheels_of_one_name_in_one_call_are_refused(make_wheel, index):
    with pytest.raises(PublishError, match="Publish one of the two"):
        publish([make_wheel(code="VALUE = 1\n"), make_wheel(code="VALUE = 2\n")], index)
    assert not index.exists()


@pytest.mark.parametrize(
    ("name", "version"), [("Demo_Pkg", "1.0"), ("demo.pkg", "1.0"), ("demo_pkg", "1.0.0")]
)
def test_a_second_spelling_of_a_published_wheel_is_refused(make_wheel, index, snapshot, name, version):
    publish([make_wheel()], index)
    before = snapshot(index)
    with pytest.raises(PublishError, match="expected one wheel per name, version, build and tags"):
        publish([make_wheel(name, version)], index)
    assert snapshot(index) == before


def test_other_builds_and_tags_of_a_version_are_other_wheels(make_wheel, index):
    names = ["py3-none-any", "1-py3-none-any", "py3-none-manylinux_2_28_x86_64"]
    publish([make_wheel(filename=f"demo_pkg-1.0-{name}.whl") for name in names], index)
    assert len(list_wheels(index)) == 3
    assert validate(index) == []


def test_nothing_is_written_where_one_wheel_of_several_is_bad(make_wheel, index, tmp_path):
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"PK")
    with pytest.raises(BinaryError):
        publish([make_wheel(), broken], index)
    assert not index.exists()


def test_a_wheel_that_nobody_published_is_refused_until_it_is_named(make_wheel, index):
    stranger = make_wheel("stranger", folder=index)
    with pytest.raises(
        PublishError, match=r"expected only published wheels, got stranger-1\.0-py3-none-any\.whl"
    ):
        publish([make_wheel()], index)
    (result,) = publish([stranger], index)
    assert result.is_new
    publish([make_wheel()], index)
    assert validate(index) == []


def test_a_listed_wheel_that_is_gone_is_reported_and_can_be_put_back(make_wheel, index, snapshot):
    wheel = make_wheel()
    publish([wheel], index)
    before = snapshot(index)
    (index / wheel.name).unlink()
    with pytest.raises(PublishError, match=r"found no demo_pkg-1\.0-py3-none-any\.whl"):
        publish([make_wheel("other")], index)
    publish([wheel], index)
    assert snapshot(index) == before


def test_what_follows_from_the_wheels_is_made_again(make_wheel, index, snapshot):
    wheel = make_wheel()
    publish([wheel], index)
    before = snapshot(index)
    (index / f"{wheel.name}.metadata").unlink()
    (index / "simple" / "index.html").unlink()
    (index / "simple" / "demo-pkg" / "index.html").write_text("gone")
    publish([wheel], index)
    assert snapshot(index) == before


def test_a_page_that_cannot_be_read_is_reported(make_wheel, index):
    publish([make_wheel()], index)
    (index / "simple" / "demo-pkg" / "index.json").write_text("{")
    with pytest.raises(PublishError, match=r"index\.json: expected JSON") as caught:
        publish([make_wheel("other")], index)
    assert "publish every wheel of the index again" in str(caught.value)


def test_the_way_out_that_the_message_names_works(make_wheel, index, snapshot):
    publish([make_wheel(), make_wheel("other")], index)
    before = snapshot(index)
    for path in sorted((index / "simple").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (index / "simple").rmdir()
    publish(sorted(index.glob("*.whl")), index)
    assert snapshot(index) == before


def test_files_of_a_dead_publisher_are_swept(make_wheel, index):
    stage = index / ".publish"
    stage.mkdir(parents=True)
    (stage / "0").write_bytes(b"half a wh")
    publish([make_wheel()], index)
    assert not stage.exists()
    assert validate(index) == []


def test_a_journal_that_cannot_be_read_is_reported(make_wheel, index):
    (index / ".publish").mkdir(parents=True)
    for content in ("{", "{}", "[1]", '["../x"]'):
        (index / ".publish" / "journal.json").write_text(content)
        with pytest.raises(PublishError, match=r"journal\.json: expected the journal of a publication"):
            publish([make_wheel()], index)


def test_a_wheel_that_changes_while_it_is_copied_is_refused(make_wheel, index, monkeypatch):
    wheel = make_wheel(code="VALUE = 1\n")
    other = make_wheel(code="VALUE = 2\n").read_bytes()
    plan = module._plan

    def change_then_plan(*arguments):
        wheel.write_bytes(other)
        return plan(*arguments)

    monkeypatch.setattr(module, "_plan", change_then_plan)
    with pytest.raises(PublishError, match="the file changed meanwhile"):
        publish([wheel], index)
    assert [path.name for path in index.iterdir()] == [".lock"]


def test_a_second_publisher_waits_and_then_gives_up(make_wheel, index):
    index.mkdir()
    with FileLock(index / ".lock"), pytest.raises(PublishError, match=r"expected the lock within 0\.1 s"):
        publish([make_wheel()], index, timeout=0.1)
    publish([make_wheel()], index, timeout=0.1)


def test_publishers_at_the_same_time_lose_nothing(make_wheel, index):
    wheels = [make_wheel(version=f"{number}.0") for number in range(6)]
    children = [_fork(lambda wheel=wheel: publish([wheel], index)) for wheel in wheels]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(wheels)
    assert len(list_wheels(index)) == len(wheels)
    assert validate(index) == []


def test_an_index_that_is_a_file_is_refused(make_wheel, index):
    index.write_text("")
    with pytest.raises(PublishError, match="expected a writable directory with room for the wheels"):
        publish([make_wheel()], index)
    with pytest.raises(PublishError, match="expected a writable directory with room for the wheels"):
        publish([make_wheel()], index / "below")
    assert index.read_text() == ""


def test_a_full_disk_leaves_no_trace(make_wheel, index, snapshot):
    """The limit on file size makes the kernel refuse a write half way through the wheel."""
    publish([make_wheel()], index)
    before = snapshot(index)
    wheel = make_wheel("big", members={"big/data.bin": bytes(1 << 20)})

    def publish_without_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
        with pytest.raises(
            PublishError, match="expected a writable directory with room for the wheels, got File"
        ):
            publish([wheel], index)

    assert os.waitpid(_fork(publish_without_room), 0)[1] == 0
    assert snapshot(index) == before
    assert not (index / ".publish").exists()


def _fork(work) -> int:
    """Run ``work`` in a child process; its exit status is 0 where it returned."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child

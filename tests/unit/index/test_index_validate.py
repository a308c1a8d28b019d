"""Validation: a whole index has no violations, and every kind of damage has its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sgl_kernel_rebuild.errors import PublishError
from sgl_kernel_rebuild.index import list_wheels, publish, validate
from sgl_kernel_rebuild.index._validate import _Validation

WHEEL = "demo_pkg-1.0-py3-none-any.whl"
PAGE = "simple/demo-pkg/index"


@pytest.fixture
def index(make_wheel, tmp_path: Path) -> Path:
    directory = tmp_path / "wheelhouse"
    publish([make_wheel(), make_wheel(version="2.0"), make_wheel("other")], directory)
    (directory / "README.md").write_text("Not a wheel; nobody's business.")
    return directory


def _edit(index: Path, name: str, old: str, new: str) -> None:
    path = index / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _edit_json(index: Path, change: Callable[[dict], object], name: str = f"{PAGE}.json") -> None:
    document = json.loads((index / name).read_text())
    change(document)
    (index / name).write_text(json.dumps(document))


def _rules(index: Path) -> set[tuple[str, str]]:
    return {(violation.path, violation.rule) for violation in validate(index)}


def test_a_whole_index_has_no_violation(index):
    assert validate(index) == []


def test_a_directory_without_publications_is_whole(tmp_path):
    assert validate(tmp_path) == []
    assert list_wheels(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simple/index.html", "expected a page, found no such file"),
        ("simple/index.json", "expected a page, found no such file"),
        (f"{PAGE}.html", "expected a page, found no such file"),
        (f"{PAGE}.json", "expected a page, found no such file"),
    ],
)
def test_a_missing_page(index, name, message):
    (index / name).unlink()
    assert (name, "page", message) in {(v.path, v.rule, v.message) for v in validate(index)}


@pytest.mark.parametrize("name", ["simple/index.html", "simple/index.json", f"{PAGE}.html", f"{PAGE}.json"])
def test_half_a_page(index, name):
    content = (index / name).read_bytes()
    (index / name).write_bytes(content[: len(content) // 2])
    assert (name, "page") in _rules(index)


def test_a_project_that_is_on_one_root_page_only(index):
    _edit(index, "simple/index.html", '<a href="other/">other</a>', "")
    assert [v.message for v in validate(index)] == [
        "project other: expected the same on index.html and index.json, only index.json has it so"
    ]


def test_a_wheel_that_is_on_one_project_page_only(index):
    lines = (index / f"{PAGE}.html").read_text().splitlines(keepends=True)
    (index / f"{PAGE}.html").write_text("".join(line for line in lines if WHEEL not in line))
    assert [v.message for v in validate(index)] == [
        f"wheel {WHEEL}: expected the same on index.html and index.json, only index.json has it so"
    ]


def test_a_link_that_leads_elsewhere(index):
    _edit(index, f"{PAGE}.html", f"../../{WHEEL}", f"https://example.org/{WHEEL}")
    assert _rules(index) == {("simple/demo-pkg", "agreement"), (WHEEL, "link")}


def test_a_listed_wheel_that_is_gone(index):
    (index / WHEEL).unlink()
    assert _rules(index) == {(WHEEL, "link")}


def test_a_wheel_with_other_bytes(index, make_wheel):
    shutil.copy(make_wheel(code="VALUE = 20\n"), index / WHEEL)
    assert _rules(index) == {(WHEEL, "hash"), (WHEEL, "size")}


def test_a_damaged_wheel(index):
    (index / WHEEL).write_bytes((index / WHEEL).read_bytes()[:-30])
    assert _rules(index) == {(WHEEL, "wheel")}


def test_a_page_with_another_size(index):
    _edit_json(index, lambda page: page["files"][0].update(size=1))
    assert _rules(index) == {(WHEEL, "size")}


def test_a_page_with_another_python(index):
    _edit(index, f"{PAGE}.html", "&gt;=3.10", "&gt;=3.8")
    assert _rules(index) == {("simple/demo-pkg", "agreement"), (WHEEL, "requires-python")}


def test_a_page_with_another_metadata_hash(index):
    _edit_json(index, lambda page: page["files"][0].update({"core-metadata": {"sha256": "0" * 64}}))
    assert _rules(index) == {("simple/demo-pkg", "agreement"), (WHEEL, "metadata")}


def test_a_page_without_the_metadata_hash(index):
    _edit_json(index, lambda page: page["files"][0].pop("core-metadata"))
    assert _rules(index) == {("simple/demo-pkg", "agreement"), (WHEEL, "metadata")}


def test_metadata_that_is_gone_or_changed(index):
    metadata = index / f"{WHEEL}.metadata"
    metadata.write_text("Name: demo_pkg\n")
    assert [(v.path, v.message) for v in validate(index)] == [
        (metadata.name, "expected the METADATA of the wheel, got other bytes")
    ]
    metadata.unlink()
    assert [(v.path, v.message) for v in validate(index)] == [
        (metadata.name, "expected the METADATA of the wheel, found no such file")
    ]


def test_a_wheel_on_the_page_of_another_project(index):
    _edit_json(index, lambda page: page.update(name="other"))
    shutil.copytree(index / "simple/demo-pkg", index / "simple/other", dirs_exist_ok=True)
    assert ("simple/other", "project") in _rules(index)


def test_orphans(index, make_wheel):
    stranger = make_wheel("stranger", folder=index).name
    (index / "gone-1.0-py3-none-any.whl.metadata").write_text("")
    (index / "simple/notes.txt").write_text("")
    (index / "simple/demo-pkg/deeper").mkdir()
    shutil.copytree(index / "simple/demo-pkg", index / "simple/nobody")
    orphans = {path for path, rule in _rules(index) if rule == "orphan"}
    assert orphans == {
        stranger,
        "gone-1.0-py3-none-any.whl.metadata",
        "simple/notes.txt",
        "simple/demo-pkg/deeper",
        "simple/nobody",
        "simple/nobody/deeper",
    }


def test_wheels_without_any_page(index):
    shutil.rmtree(index / "simple")
    assert {("simple", "page"), (WHEEL, "orphan")} <= _rules(index)


def test_all_violations_are_reported_in_order(index):
    (index / WHEEL).unlink()
    (index / "simple/index.json").unlink()
    (index / f"{PAGE}.html").write_text("")
    violations = validate(index)
    assert len(violations) >= 4
    assert violations == sorted(set(violations))


def test_the_journal_excuses_its_own_wheels_only(index, make_wheel):
    (index / ".publish").mkdir()
    (index / ".publish/journal.json").write_text('["new-1.0-py3-none-any.whl"]')
    make_wheel("new", folder=index)
    (index / "simple/new").mkdir()
    assert validate(index) == []
    make_wheel("stranger", folder=index)
    assert _rules(index) == {("stranger-1.0-py3-none-any.whl", "orphan")}


def test_what_cannot_be_read_at_all(index, tmp_path):
    with pytest.raises(PublishError, match="expected a readable directory, got No such file"):
        validate(tmp_path / "nowhere")
    (index / ".publish").mkdir()
    (index / ".publish/journal.json").write_text("?")
    with pytest.raises(PublishError, match="expected the journal of a publication"):
        validate(index)


def test_a_publication_during_the_check_is_no_violation(index, make_wheel, monkeypatch):
    wheel = make_wheel(version="3.0")
    check_root = _Validation._check_root
    calls = []

    def publish_and_check(self):
        publish([wheel], index)
        check_root(self)
        calls.append(len(self.listed))

    monkeypatch.setattr(_Validation, "_check_root", publish_and_check)
    assert validate(index) == []
    assert len(calls) == 2

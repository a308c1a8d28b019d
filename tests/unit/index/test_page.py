"""The pages for people, as text and in a headless Chromium: phone, dark, keyboard, nothing from elsewhere."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, sync_playwright
from sgl_kernel_rebuild.abi import certify
from sgl_kernel_rebuild.abi._elffile import SharedObject, Symbol
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.index import publish, validate
from sgl_kernel_rebuild.page import render_audit

ROOT = Path(__file__).parents[3]
ARTEFACTS = ROOT / "build" / "pages"
"""Screenshots are kept there."""
LATE = SharedObject("demo/late.so", undefined=(Symbol("_ZN3c104cuda9SetDeviceEab"),))
PLAIN = SharedObject("demo/plain.so")
TARGETS = ["sm_80", "sm_90a", "sm_120", "compute_120"]
COVERAGE = {
    "schema": 1,
    "targets": TARGETS,
    "ops": {
        "scale": {"family": "demo", "kernels": {target: ["scale_f16", "scale_f32"] for target in TARGETS}},
        "add": {"family": "demo", "kernels": {"sm_80": ["add_f32"]}},
    },
    "kernels": {
        "scale_f16": {"source": "x", "targets": {"sm_80": {"registers": 8}, "sm_90a": {"registers": 24}}},
        "scale_f32": {"source": "x", "targets": {"sm_80": {"registers": 16}, "compute_120": None}},
        "add_f32": {"source": "x", "targets": {"sm_80": {"registers": 40}}},
    },
}
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update"
    " --disable-sync --no-first-run"
)


def proofs(certificate, coverage=COVERAGE, version="1.0"):
    info = f"demo_pkg-{version}.dist-info/sgl_kernel"
    return {
        f"{info}/abi_certificate.json": json.dumps(certificate).encode(),
        f"{info}/coverage.json": json.dumps(coverage).encode(),
    }


@pytest.fixture
def index(make_wheel, tmp_path):
    """An index of three wheels, two of them with proofs."""
    certificate = certify("demo-pkg 1.0", [LATE, PLAIN]).to_json()
    wheels = [
        make_wheel(members=proofs(certificate)),
        make_wheel(version="2.0+cu128.1", members=proofs(certificate, version="2.0+cu128.1")),
        make_wheel("pure"),
    ]
    publish(wheels, tmp_path / "wheelhouse")
    return tmp_path / "wheelhouse"


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: the system's, or else the one that ``playwright install chromium`` fetched."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS.split(), chromium_sandbox=False
        )
        yield chromium
        chromium.close()


def look_at(browser: Browser, path: Path, *, width: int = 1200, scheme: str = "light"):
    """Open a page; return it and the list of what it asked for, which fills as it is used."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: asked.append(f"console: {message.text}"))
    page.goto(path.as_uri())
    return page, asked


def test_what_the_page_of_an_index_says(index):
    text = (index / "index.html").read_text()
    assert validate(index) == []
    for piece in (
        "pip install --upgrade --find-links . demo-pkg==2.0",
        "pip install --upgrade --find-links . pure",
        "fits torch 2.8.0 to 2.15.0 only; under 2.7.0 it lacks c10::cuda::SetDevice(signed char, bool)",
        '<td class="bad">misses 1</td>',
        "nearest there: <code>c10::cuda::SetDevice(signed char)</code>",
        '<td class="good">2 (24)</td>',
        '<td class="good">1 (40)</td><td class="bad">none</td>',
        '<a href="demo_pkg-2.0%2Bcu128.1-py3-none-any.whl#sha256=',
        "No certificate: this wheel has no proofs",
    ):
        assert piece in text
    # The newest first.
    assert text.index("demo_pkg-2.0") < text.index("demo_pkg-1.0") < text.index("pure-1.0-py3")


@pytest.mark.parametrize("name", ["index", "audit"])
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_in_a_browser(index, tmp_path, browser, name, width, scheme):
    path = index / "index.html"
    if name == "audit":
        path = tmp_path / "audit.html"
        report = certify("demo-pkg 1.0", [LATE, PLAIN]).to_json()
        finding = {"kind": "torch", "where": "demo/late.so", "message": "does not load under torch 2.7.0"}
        path.write_bytes(render_audit([{**report, "findings": [finding]}]))
    page, asked = look_at(browser, path, width=width, scheme=scheme)
    assert asked == [path.as_uri()]
    # Nothing makes the page wider than the screen: wide tables scroll in a region of their own.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
    assert page.evaluate("document.querySelectorAll('script, link, img, iframe').length") == 0
    # Every heading level follows the one above it, every region and input has a name.
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.locator("[role=region]:not([aria-label])").count() == 0
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    picture = ARTEFACTS / f"{name}-{scheme}-{width}.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 10_000
    page.close()


def test_by_keyboard(index, browser):
    page, _ = look_at(browser, index / "index.html", width=390)
    page.keyboard.press("Tab")
    # The command that pip takes is focused first and selected as a whole, ready to be copied.
    assert page.evaluate("document.activeElement.tagName") == "INPUT"
    selection = "document.activeElement.value.slice(document.activeElement.selectionStart,"
    command = page.evaluate(f"{selection} document.activeElement.selectionEnd)")
    assert command == "pip install --upgrade --find-links . demo-pkg==2.0"
    visited = []
    for _ in range(40):
        page.keyboard.press("Tab")
        tag, role = page.evaluate(
            "[document.activeElement.tagName, document.activeElement.getAttribute('role')]"
        )
        visited.append(role or tag)
        if role == "region" and "scrolled" not in visited:
            page.keyboard.press("ArrowRight")
            # Not wait_for_function, whose polling the page's own policy forbids.
            for _ in range(200):
                if page.evaluate("document.activeElement.scrollLeft") > 0:
                    visited.append("scrolled")
                    break
                page.wait_for_timeout(20)
        if tag == "SUMMARY" and "opened" not in visited:
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open")
            visited.append("opened")
    assert {"A", "region", "scrolled", "SUMMARY", "opened"} <= set(visited)
    page.close()


def test_names_are_text(make_wheel, tmp_path):
    evil = "<script>alert(1)</script>"
    certificate = certify(evil, [SharedObject(f"{evil}.so", undefined=LATE.undefined)]).to_json()
    publish([make_wheel(members=proofs(certificate))], tmp_path / "wheelhouse")
    for text in (
        (tmp_path / "wheelhouse" / "index.html").read_text(),
        render_audit([certificate]).decode(),
    ):
        assert "<script>" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


@pytest.mark.parametrize(
    "certificate", ["no certificate", [], {}, {"releases": 1}, {"releases": [], "objects": [{}]}]
)
def test_proofs_of_an_unknown_form_are_left_out(make_wheel, tmp_path, certificate):
    publish([make_wheel(members=proofs(certificate, coverage=[1]))], tmp_path / "wheelhouse")
    assert "No certificate" in (tmp_path / "wheelhouse" / "index.html").read_text()


def test_check_reads_the_page_back(index):
    page = index / "index.html"
    whole = page.read_text()
    (first,) = {link.partition('"')[0] for link in whole.split("#sha256=")[1:2]}
    page.write_text(whole.replace(first, "0" * 64))
    (violation,) = validate(index)
    assert (violation.path, violation.rule) == ("index.html", "page")
    assert f"expected sha256 {first}, the page has {'0' * 64}" in violation.message
    page.write_text(whole[:-10])
    assert [item.rule for item in validate(index)] == ["page"]
    page.unlink()
    (violation,) = validate(index)
    assert violation.message == "expected the page for people, found none"
    publish([], index)
    assert validate(index) == []
    assert page.read_text() == whole


def test_audit_writes_a_page(tmp_path):
    listed = tmp_path / "undefined.txt"
    listed.write_text("_ZN3c104cuda9SetDeviceEab\n")
    page = tmp_path / "audit.html"
    result = CliRunner().invoke(main, ["audit", str(listed), "--html", str(page), "--gpu", "sm_90"])
    assert result.exit_code == 10
    text = page.read_text()
    assert "Audit: undefined.txt" in text
    assert "does not load under torch 2.7.0 to 2.7.1" in text
    assert '<td class="bad">misses 1</td>' in text
    result = CliRunner().invoke(main, ["audit", str(listed), "--html", str(tmp_path / "none" / "page")])
    assert result.exit_code == 8
    assert "page: cannot be written: No such file or directory" in result.stderr

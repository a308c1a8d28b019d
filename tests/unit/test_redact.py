"""What never prints, and what is taken out of texts."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sgl_kernel_rebuild.deploy.secret import Secret
from sgl_kernel_rebuild.redact import make_redactor

KEY = "Zx81-qwertyuiopasdfghjklzxcvbnm_0123456789A"


@pytest.fixture
def redact():
    environment = {"HF_TOKEN": "plain-looking-value", "PATH": "/usr/bin", "SHORT_KEY": "abc"}
    return make_redactor([KEY], environment=environment, host="gpubox7", user="maria", home="/home/maria")


def test_a_secret_hides_in_a_dataclass_and_survives_copies():
    options = dataclasses.make_dataclass("Options", ["api_key"])(Secret(KEY))
    assert KEY not in f"{options=}"
    for other in (copy.deepcopy(options.api_key), pickle.loads(pickle.dumps(Secret(KEY)))):
        assert other == KEY
        assert KEY not in repr(other)


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY}.",
        f"https://maria:{KEY}@index.example/simple",
        "https://user:hunter2pass@index.example",
        "HF_TOKEN=hunter2pass",
        'OPENAI_API_KEY: "hunter2pass"',
        '{"api_key": "hunter2pass"}',
        "--api-key hunter2pass",
        "--api-key=hunter2pass",
        "ServerArgs(model='x', api_key='hunter2pass', tp=1)",
        "Authorization: Bearer hunter2pass",
        "authorization: basic hunter2pass",
        "password = hunter2pass",
        "the token hf_hunter2passhunter2pass",
        "sk-hunter2passhunter2pass",
        "ghp_hunter2passhunter2pass",
        "AKIAHUNTER2PASSHUNTE",
        "https://index.example/x?api_key=hunter2pass&x=1",
        "plain-looking-value",
        "gpubox7: up",
        "/home/maria/models",
        "ssh maria@gpubox7",
    ],
)
def test_removed(redact, text):
    cleaned = redact(text)
    for secret in (KEY, "hunter2pass", "maria", "gpubox7", "plain-looking-value", "AKIA"):
        assert secret not in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "max_total_tokens=32768",
        "#new-token: 2048, #cached-token: 1024",
        "monkey: banana, tensor key: value",
        "prompt_tokens: 12345",
        '"completion_tokens": 123456',
        "tokenizer: Qwen2Tokenizer",
        "undefined symbol: _ZN3c104cuda9SetDeviceEab",
        "api_key=None",
        "marianne lives in gpubox71",
        "abc /usr/bin",
    ],
)
def test_kept(redact, text):
    assert redact(text) == text


@given(
    st.text(), st.text(), st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=16)
)
def test_a_key_never_survives(before, after, key):
    redact = make_redactor([key], environment={}, host="", user="", home="/")
    assert key not in redact(f"{before} {key} {after}".replace(key + key, key))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/bob/x and /Users/eve/y", "/home/[user]/x and /Users/[user]/y"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [removed]"),
        ("https://me:pw@host/simple", "https://[removed]@host/simple"),
        ("api_key=12345&x=1", "api_key=[removed]&x=1"),
        ("key=12345 SECRET_KEY: 98765", "key=[removed] SECRET_KEY: [removed]"),
        ("at 192.168.0.7:8000", "at [address]:8000"),
        ("at 127.0.0.1:8000", "at 127.0.0.1:8000"),
        ("libcudart.so.12.8.90 and torch 2.8.0", "libcudart.so.12.8.90 and torch 2.8.0"),
    ],
)
def test_what_stands_in_its_place(text, expected):
    redact = make_redactor(has_addresses=False, environment={}, host="", user="", home="/root")
    assert redact.document({"key": [text, 5]}) == {"key": [expected, 5]}


def test_versions_of_four_parts_stay_where_addresses_may(redact):
    assert redact("nvidia-cublas-cu12 12.6.4.1") == "nvidia-cublas-cu12 12.6.4.1"


def test_json_stays_json(redact):
    document = {"api_key": KEY, "note": 'say "hi"', "tokens": 5}
    assert json.loads(redact(json.dumps(document)))["tokens"] == 5

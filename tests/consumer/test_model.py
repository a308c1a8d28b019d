"""The model and its reference, on a CPU: the tests of SGLang rest on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sgl_kernel
import torch
from safetensors.torch import load_file

from . import _model, _reference


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    _model.make(folder, _model.TINY)
    return folder


def test_the_packing_is_autoawqs() -> None:
    """One word, nibble by nibble: columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest on."""
    packed = _model.pack(torch.arange(8, 16)[None])
    assert packed.item() & 0xFFFFFFFF == 0xFDB9ECA8
    assert _reference.unpack(packed).tolist() == [list(range(8, 16))]


def test_three_ways_to_dequantize_agree() -> None:
    values = _model.quantized(256, 64, torch.Generator().manual_seed(0))
    expected = _reference.dequantize(values["qweight"], values["qzeros"], values["scales"])
    actual = sgl_kernel.awq_dequantize(values["qweight"], values["scales"], values["qzeros"])
    assert torch.equal(actual, expected.half())
    assert 0.5 < expected.std() * 256**0.5 < 2


def test_every_value_is_the_same_in_bfloat16(tiny: Path) -> None:
    for name, tensor in load_file(tiny / "model.safetensors").items():
        if tensor.is_floating_point():
            assert torch.equal(tensor.float(), tensor.bfloat16().float()), name


def test_the_answers_are_greedy_with_a_margin(tiny: Path) -> None:
    model = _reference.Qwen3(tiny)
    for prompt in _model.load_prompts(tiny):
        answer = model.greedy(prompt.tokens, 100 if prompt.messages else len(prompt.answer))
        assert answer.tokens == prompt.answer
        assert answer.margin > _model.MARGIN - 0.1
        assert len(answer.logprobs) == len(prompt.answer)
        assert len(answer.prompt_logprobs) == len(prompt.tokens) - 1


def test_the_answers_depend_on_the_whole_prompt(tiny: Path) -> None:
    model = _reference.Qwen3(tiny)
    prompt = _model.load_prompts(tiny)[3]
    other = [prompt.tokens[0] ^ 1, *prompt.tokens[1:]]
    assert model.greedy(other, 1).logprobs != model.greedy(prompt.tokens, 1).logprobs


def test_a_cache_changes_nothing_until_it_rounds(tiny: Path) -> None:
    model = _reference.Qwen3(tiny)
    tokens = _model.load_prompts(tiny)[4].tokens
    whole = model.greedy(tokens, 1)
    chunked = model.greedy(tokens, 1, chunk=7)
    assert chunked.prompt_logprobs == pytest.approx(whole.prompt_logprobs, abs=1e-4)
    assert model.greedy(tokens, 1, torch.float8_e5m2) == whole  # one chunk and no decoding step read no cache
    rounded = model.greedy(tokens, 1, torch.float8_e5m2, chunk=7)
    assert rounded.prompt_logprobs != pytest.approx(whole.prompt_logprobs, abs=1e-3)


def test_the_same_seed_gives_the_same_model(tiny: Path, tmp_path: Path) -> None:
    _model.make(tmp_path, _model.TINY)
    for name in ("config.json", "prompts.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes(), name
    one, other = (load_file(folder / "model.safetensors") for folder in (tiny, tmp_path))
    for name, tensor in one.items():
        if name == "lm_head.weight":  # a solution, rounded: a library may sum in another order
            torch.testing.assert_close(tensor, other[name], rtol=2**-7, atol=1e-6)
        else:
            assert torch.equal(tensor, other[name]), name


def test_the_tokenizer_knows_the_words_of_the_chat(tiny: Path) -> None:
    vocabulary = json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"]
    chat = _model.load_prompts(tiny)[-1]
    assert chat.messages is not None
    words = " ".join(message["content"] for message in chat.messages).split()
    assert {vocabulary[word] for word in words} <= set(chat.tokens)
    assert [vocabulary[word] for word in chat.text.split()] == chat.answer[:-1]

"""Unmodified SGLang on this wheel says what the reference says; needs a GPU."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import _serving
from ._model import Prompt
from ._reference import Answer, Qwen3
from ._serving import CONFIGURATIONS, Consumer, Server, sampling

Record = Callable[..., None]
ROOT = Path(__file__).resolve().parents[2]
LONG = 1024  # tokens; a longer prompt is sent alone, so that chunks begin where the reference's do

each = pytest.mark.parametrize("consumer", CONFIGURATIONS, ids=lambda c: c.name, indirect=True)
each_server = pytest.mark.parametrize(
    "consumer", [c for c in CONFIGURATIONS if not c.is_engine], ids=lambda c: c.name, indirect=True
)
each_sampler = pytest.mark.parametrize(
    "consumer", [c for c in CONFIGURATIONS if c.samples_with_us], ids=lambda c: c.name, indirect=True
)


@pytest.fixture
def consumer(request: pytest.FixtureRequest, consumers: dict[str, Consumer]) -> Consumer:
    """One that is ready."""
    running = consumers[request.param.name]
    running.wait()
    return running


def greedy(consumer: Consumer, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """What SGLang makes of each prompt; one request for all of them."""
    return consumer.generate(
        input_ids=[prompt.tokens for prompt in prompts],
        sampling_params=[sampling(len(prompt.answer)) for prompt in prompts],
        return_logprob=True,
        logprob_start_len=0,
    )


def tokens_of(answer: dict[str, Any]) -> list[int]:
    return [token for _, token, *_ in answer["meta_info"]["output_token_logprobs"]]


def logprobs_of(answer: dict[str, Any]) -> list[float]:
    """Of the prompt from its second token on, then of the answer."""
    meta = answer["meta_info"]
    return [entry[0] for entry in (*meta["input_token_logprobs"][1:], *meta["output_token_logprobs"])]


@each
def test_versions(consumer: Consumer, results: dict[str, Any], record: Record) -> None:
    """Torch 2.7.0, SGLang 0.5.1.post3 and this package, in the very processes that answer."""
    assert results["torch"].split("+")[0] == "2.7.0"
    assert results["sglang"] == "0.5.1.post3"
    libraries = consumer.libraries()
    record(libraries=[path.name for path in libraries])
    assert [path for path in libraries if "sgl_kernel" in str(path)] == [_serving.library()]
    assert _serving.folder_of("torch") / "lib/libtorch_cuda.so" in libraries


@each
@pytest.mark.parametrize("at_once", [True, False], ids=["together", "one by one"])
def test_greedy(
    consumer: Consumer,
    at_once: bool,
    prompts: list[Prompt],
    reference: Callable[..., list[Answer]],
    record: Record,
) -> None:
    """Every token of every answer, and the log-probabilities of prompts and answers."""
    configuration = consumer.configuration
    expected = reference(configuration.kv_dtype)
    assert min(answer.margin for answer in expected) > 2
    short = [i for i, prompt in enumerate(prompts) if len(prompt.tokens) <= LONG]
    # Alone: a decode batch of one, and the long prompt in chunks.
    batches = [short] if at_once else [[i] for i in range(len(prompts)) if i not in short or i % 8 == 0]
    differing, errors = [], []
    compared = 0
    for batch in batches:
        for i, answer in zip(batch, greedy(consumer, [prompts[i] for i in batch]), strict=True):
            compared += len(expected[i].tokens)
            if tokens_of(answer) != expected[i].tokens:
                differing.append((len(prompts[i].tokens), tokens_of(answer), expected[i].tokens))
                continue
            logprobs = [*expected[i].prompt_logprobs, *expected[i].logprobs]
            errors += [abs(a - b) for a, b in zip(logprobs_of(answer), logprobs, strict=True)]
    worst, rms = max(errors, default=math.nan), math.sqrt(sum(e * e for e in errors) / max(1, len(errors)))
    record(
        **{
            "greedy together" if at_once else "greedy one by one": {
                "requests": len(batches),
                "prompts": sum(map(len, batches)),
                "answer tokens": compared,
                "differing answers": len(differing),
                "logprobs": len(errors),
                "worst logprob error": round(worst, 5),
                "worst allowed": configuration.worst,
                "rms logprob error": round(rms, 5),
                "rms allowed": configuration.rms,
            }
        }
    )
    assert not differing, f"(tokens of the prompt, answer, reference): {differing[:3]}"
    assert worst <= configuration.worst
    assert rms <= configuration.rms


@each_sampler
def test_sampling(consumer: Consumer, prompts: list[Prompt], model: Path, record: Record) -> None:
    """top_p and min_p so strict that the best token alone is left; top_k draws from the best eight."""
    short = [prompt for prompt in prompts if len(prompt.tokens) <= LONG]
    for strict in ({"top_p": 1e-6}, {"min_p": 1.0}, {"top_k": 8, "min_p": 1.0}, {"top_k": 8, "top_p": 1e-6}):
        answers = consumer.generate(
            input_ids=[prompt.tokens for prompt in short],
            sampling_params=[
                sampling(len(prompt.answer), **{"temperature": 1.0, **strict}) for prompt in short
            ],
            return_logprob=True,
        )
        assert [tokens_of(answer) for answer in answers] == [prompt.answer for prompt in short], strict
    prompt, draws, k = short[-1], 256, 8
    answers = consumer.generate(
        input_ids=[prompt.tokens] * draws,
        sampling_params=[sampling(1, temperature=2.0, top_k=k)] * draws,
        return_logprob=True,
    )
    drawn = {tokens_of(answer)[0] for answer in answers}
    qwen3 = Qwen3(model, "cuda")
    logits = qwen3.logits(qwen3.hidden(prompt.tokens)[-1:])[0]
    lowest = float(logits.topk(k).values[-1]) - consumer.configuration.worst
    record(sampling={"strict settings equal to greedy": 4, "draws": draws, "different tokens": len(drawn)})
    assert all(float(logits[token]) >= lowest for token in drawn)
    assert len(drawn) > 1


@each_server
def test_http(consumer: Server, prompts: list[Prompt], record: Record) -> None:
    """/health, /v1/models and /v1/chat/completions, whole and streamed, by their API's client library."""
    chat = next(prompt for prompt in prompts if prompt.messages is not None)
    body = {"model": _serving.MODEL_NAME, "messages": chat.messages, "temperature": 0.0, "max_tokens": 40}
    with _serving.requests.get(consumer.url("/health"), timeout=60) as response:
        assert response.status_code == 200
    if consumer.configuration.api_key is not None:
        for path in ("/v1/models", "/v1/chat/completions"):
            with _serving.requests.get(consumer.url(path), timeout=60) as response:
                assert response.status_code == 401
    with consumer.openai() as client:
        assert [card.id for card in client.models.list()] == [_serving.MODEL_NAME]
        whole = client.chat.completions.create(**body)
        with client.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
    (choice,) = whole.choices
    assert choice.message.content.strip() == chat.text
    assert choice.finish_reason == "stop"
    assert whole.usage.prompt_tokens == len(chat.tokens)
    assert whole.usage.completion_tokens == len(chat.answer)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    parts = [choice.delta.content for choice in choices if choice.delta.content]
    assert "".join(parts).strip() == chat.text
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert len(parts) > 1
    record(
        http={
            "/health": 200,
            "/v1/models": [_serving.MODEL_NAME],
            "without the key": 401 if consumer.configuration.api_key else None,
            "/v1/chat/completions": "equal to the reference",
            "/v1/chat/completions streamed": f"equal to the reference, {len(parts)} parts",
        }
    )


@each_server
def test_kernels(consumer: Server, prompts: list[Prompt], tmp_path: Path, record: Record) -> None:
    """SGLang's own profiler sees our kernels at work, in CUDA graphs too."""
    short = [prompt for prompt in prompts if len(prompt.tokens) <= LONG]
    some = sorted(short, key=lambda prompt: len(prompt.tokens))[-3:]
    parameters = [
        sampling(4),
        sampling(4, temperature=1.0, top_p=0.9),
        sampling(4, temperature=1.0, min_p=0.1),
    ]
    with consumer.profile(tmp_path) as names:
        consumer.generate(input_ids=[prompt.tokens for prompt in some], sampling_params=parameters)
    ops = json.loads((ROOT / "csrc/ops/ops.json").read_text()).values()
    families = {
        name: op["family"]
        for name in names
        for op in ops
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in op["kernels"])
    }
    record(kernels=sorted(families))
    is_awq = "awq" in consumer.configuration.flags
    expected = {"norm", "activation", "rope", "awq" if is_awq else "marlin_gemm"}
    if consumer.configuration.samples_with_us:
        expected.add("sampling")
    assert expected <= set(families.values()), sorted(names)


@each
def test_nothing_missing_was_called(consumer: Consumer, record: Record) -> None:
    """Nobody called a name that sgl_kernel.missing() lists: that raises, and the log would have it."""
    assert consumer.process.poll() is None
    refused = consumer.refused_calls()
    record(**{"calls of missing names": len(refused)})
    assert not refused

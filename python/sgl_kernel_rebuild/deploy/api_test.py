"""Is a server what it should be? A dozen checks by the openai client, and what it achieves.

Every check ends as ``pass``, ``fail`` (with what was expected and what came) or ``skip`` (what it needs did
not pass). A server's fault is named as what it is: refused, timed out, status, broken stream, bad JSON,
another model. Times are taken at the client: the first token from sending the request to the first
piece of text, the rate from there to the last piece, by the tokens that the server counts.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from sgl_kernel_rebuild.deploy.profile import Thresholds
from sgl_kernel_rebuild.deploy.ready import is_healthy
from sgl_kernel_rebuild.deploy.secret import Secret
from sgl_kernel_rebuild.errors import HostError

__all__ = ["CHECKS", "Check", "Report", "Sample", "percentile", "run"]

_PROMPT = "Name the planets of the solar system, from the sun outwards."
_WORDS = "the quick brown fox jumps over the lazy dog and runs on through the wood "
_LINE = len(_WORDS.split())
_PERCENTILES = (50, 90, 95, 99)


class _Fault(Exception):
    """What a check found: a sentence of the form ``expected X, got Y``."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check; ``seconds`` it took."""

    name: str
    verdict: str
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One streamed answer: seconds to the first text and in all, tokens as the server counts them."""

    first_token: float
    total: float
    prompt_tokens: int
    tokens: int
    finish: str

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first, None for fewer than two."""
        span = self.total - self.first_token
        return (self.tokens - 1) / span if self.tokens > 1 and span > 0 else None


@dataclass
class Report:
    """All checks, and the figures of those that measure."""

    url: str
    model: str
    checks: list[Check] = field(default_factory=list)
    single: list[Sample] = field(default_factory=list)
    long_prompt: list[Sample] = field(default_factory=list)
    concurrent: list[Sample] = field(default_factory=list)
    concurrency: int = 0
    wall: float = 0.0

    @property
    def passed(self) -> bool:
        return all(check.verdict == "pass" for check in self.checks)

    def figures(self) -> dict[str, dict[str, float]]:
        """Return by series what percentiles and rates it has; seconds, and tokens per second."""
        series = {"single": self.single, "long prompt": self.long_prompt, "concurrent": self.concurrent}
        figures: dict[str, dict[str, float]] = {}
        for name, samples in series.items():
            if not samples:
                continue
            row: dict[str, float] = {"requests": len(samples)}
            for key, values in (
                ("first_token", [sample.first_token for sample in samples]),
                ("total", [sample.total for sample in samples]),
            ):
                row |= {f"{key}_p{level}": percentile(values, level) for level in _PERCENTILES}
            if rates := [sample.rate for sample in samples if sample.rate is not None]:
                row["tokens_per_second"] = statistics.median(rates)
            if name == "concurrent" and self.wall > 0:
                row["tokens_per_second_all"] = sum(sample.tokens for sample in samples) / self.wall
            figures[name] = row
        return figures

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "model": self.model,
            "passed": self.passed,
            "concurrency": self.concurrency,
            "checks": [asdict(check) for check in self.checks],
            "figures": self.figures(),
            "samples": {
                "single": [asdict(sample) for sample in self.single],
                "long_prompt": [asdict(sample) for sample in self.long_prompt],
                "concurrent": [asdict(sample) for sample in self.concurrent],
            },
        }


def percentile(values: Sequence[float], level: float) -> float:
    """Return a percentile by linear interpolation between the nearest ranks; 0 ≤ level ≤ 100.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("percentile: expected at least one value, got none")
    ordered = sorted(values)
    place = (len(ordered) - 1) * level / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class _Session:
    """What the checks share: clients, the model's name and context length, the report."""

    def __init__(self, url: str, key: str, model: str | None, limits: Thresholds) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.key = key
        self.expected_model = model
        self.limits = limits
        self.model = model or ""
        self.context: int | None = None
        self.tokens_per_word = 1.0
        self.report = Report(self.url, self.model)
        self.client = self.connect(key)

    def connect(self, key: str) -> Any:
        try:
            import openai
        except ImportError as err:
            raise HostError(
                "test-api: expected the openai client, got no such package\n"
                "Install it with: pip install 'sgl-kernel-rebuild[deploy]'"
            ) from err
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, timeout=self.limits.timeout, max_retries=0
        )

    def chat(self, text: str, **options: Any) -> Any:
        return self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": text}], **options
        )


def run(
    url: str,
    key: str,
    *,
    model: str | None,
    limits: Thresholds,
    progress: Callable[[str], None] = lambda name: None,
) -> Report:
    """Run all checks against a server and return the report; a failing check is no error.

    ``model`` is the name that the server must serve; None takes the first it lists.

    Raises:
        HostError: the openai client is not installed.
    """
    session = _Session(url, key, model, limits)
    failed: set[str] = set()
    for name, needs, check in CHECKS:
        progress(name)
        begin = time.perf_counter()
        if missing := [need for need in needs if need in failed]:
            verdict, detail = "skip", f"needs {', '.join(missing)}"
        else:
            try:
                verdict, detail = "pass", check(session)
            except _Fault as fault:
                verdict, detail = "fail", str(fault)
            except Exception as err:  # whatever a client raises is the server's fault: named, not thrown
                verdict, detail = "fail", _describe(err)
        if verdict != "pass":
            failed.add(name)
        detail = detail.replace(key, repr(Secret(key))) if key else detail
        session.report.checks.append(Check(name, verdict, detail, round(time.perf_counter() - begin, 4)))
    session.report.model = session.model
    return session.report


def _check_health(session: _Session) -> str:
    if not is_healthy(session.url):
        raise _Fault("expected 200 from /health, got no such answer")
    return "200"


def _check_models(session: _Session) -> str:
    listed = list(session.client.models.list())
    names = [getattr(item, "id", None) for item in listed]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise _Fault(f"expected a list of models, got {names}")
    if session.expected_model is not None and session.expected_model not in names:
        raise _Fault(f"wrong model: expected {session.expected_model}, got {', '.join(map(str, names))}")
    session.model = session.expected_model or str(names[0])
    context = getattr(listed[names.index(session.model)], "max_model_len", None)
    session.context = context if isinstance(context, int) and context > 0 else None
    return ", ".join(map(str, names)) + (f", {session.context} tokens" if session.context else "")


def _check_completion(session: _Session) -> str:
    answer = session.client.completions.create(
        model=session.model, prompt=_words(_LINE), max_tokens=16, temperature=0
    )
    choice = _first_choice(answer)
    counted = getattr(answer.usage, "prompt_tokens", None)
    if not isinstance(counted, int) or counted < 1:
        raise _Fault(f"bad answer: expected a count of the prompt's tokens, got {counted}")
    session.tokens_per_word = counted / _LINE
    return _check_answer(session, answer, choice.text, choice.finish_reason, 16)


def _check_chat(session: _Session) -> str:
    answer = session.chat(_PROMPT, max_tokens=16, temperature=0)
    choice = _first_choice(answer)
    message = choice.message
    # A reasoning parser puts the text of a thinking model elsewhere.
    text = message.content or getattr(message, "reasoning_content", None)
    return _check_answer(session, answer, text, choice.finish_reason, 16)


def _check_stream(session: _Session) -> str:
    sample = _stream(session, _PROMPT, session.limits.max_tokens)
    session.report.single.append(sample)
    floor = session.limits.min_tokens_per_second
    if floor is not None and (sample.rate or 0) < floor:
        raise _Fault(f"slow: expected at least {floor:g} tokens/s, got {sample.rate or 0:.1f}")
    rate = f", {sample.rate:.1f} tokens/s" if sample.rate else ""
    return f"first token {sample.first_token:.3f} s{rate}"


def _check_wrong_key(session: _Session) -> str:
    return _expect_status(lambda: list(session.connect("wrong-" + "x" * 16).models.list()), 401)


def _check_bad_input(session: _Session) -> str:
    _expect_status(lambda: session.chat("x", max_tokens=16, temperature="hot"), 400)
    return _expect_status(
        lambda: session.client.chat.completions.create(model=session.model, messages=[], max_tokens=16), 400
    )


def _check_too_long(session: _Session) -> str:
    if session.context is None:
        return "the server names no context length: not checked"
    prompt = _words(round(1.2 * session.context / session.tokens_per_word) + _LINE)
    return _expect_status(lambda: session.chat(prompt, max_tokens=16), 400)


def _check_long_prompt(session: _Session) -> str:
    wanted = session.limits.long_prompt_tokens
    if session.context is not None:
        wanted = min(wanted, session.context // 2)
    prompt = _words(max(1, round(wanted / session.tokens_per_word)))
    sample = _stream(session, prompt, 16)
    session.report.long_prompt.append(sample)
    if sample.prompt_tokens < 0.9 * wanted:
        raise _Fault(f"cut prompt: expected about {wanted} tokens read, got {sample.prompt_tokens}")
    return f"{sample.prompt_tokens} tokens, first token {sample.first_token:.3f} s"


def _check_concurrency(session: _Session) -> str:
    limits = session.limits
    session.report.concurrency = limits.concurrency
    begin = time.perf_counter()
    errors: list[str] = []

    def one(number: int) -> Sample | None:
        try:
            return _stream(session, f"{number}. {_PROMPT}", limits.max_tokens)
        except _Fault as fault:
            errors.append(str(fault))
        except Exception as err:  # as in run
            errors.append(_describe(err))
        return None

    with ThreadPoolExecutor(limits.concurrency) as pool:
        samples = [sample for sample in pool.map(one, range(limits.requests)) if sample is not None]
    session.report.concurrent += samples
    session.report.wall = time.perf_counter() - begin
    if errors:
        kinds = "; ".join(sorted(set(errors)))
        raise _Fault(f"{len(errors)} of {limits.requests} requests failed: {kinds}")
    for name, values, ceiling in (
        ("first token", [sample.first_token for sample in samples], limits.first_token_p95),
        ("request", [sample.total for sample in samples], limits.request_p95),
    ):
        if ceiling is not None and (value := percentile(values, 95)) > ceiling:
            raise _Fault(f"slow: {name}: expected at most {ceiling:g} s at p95, got {value:.3f} s")
    rate = sum(sample.tokens for sample in samples) / session.report.wall
    return f"{limits.requests} requests, {limits.concurrency} at a time, {rate:.1f} tokens/s"


CHECKS: Sequence[tuple[str, tuple[str, ...], Callable[[_Session], str]]] = (
    ("health", (), _check_health),
    ("models", ("health",), _check_models),
    ("completion", ("models",), _check_completion),
    ("chat", ("models",), _check_chat),
    ("streaming", ("models",), _check_stream),
    ("wrong key", ("health",), _check_wrong_key),
    ("bad input", ("models",), _check_bad_input),
    ("too long", ("completion",), _check_too_long),
    ("long prompt", ("completion", "streaming"), _check_long_prompt),
    ("concurrency", ("streaming",), _check_concurrency),
)
"""Name, the checks that it needs, and what it does; in this order."""


def _stream(session: _Session, prompt: str, max_tokens: int) -> Sample:
    """Ask for a streamed answer and read it to its end.

    Raises:
        _Fault: it ended before the server said why (a cut stream), brought no text, or no usage.
    """
    begin = time.perf_counter()
    first: float | None = None
    last = begin
    finish: str | None = None
    usage: Any = None
    pieces = 0
    options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    for chunk in session.chat(prompt, max_tokens=max_tokens, **options):
        usage = getattr(chunk, "usage", None) or usage
        for choice in getattr(chunk, "choices", None) or ():
            if choice.delta.content or getattr(choice.delta, "reasoning_content", None):
                last = time.perf_counter()
                first = last if first is None else first
                pieces += 1
            finish = choice.finish_reason or finish
    if finish is None:
        raise _Fault(f"cut stream: expected an end with a reason, got {pieces} pieces and the end")
    if usage is None:
        raise _Fault("stream: expected the count of tokens at its end, got none")
    # A random model may say nothing that decodes to text; its tokens were made all the same.
    first = time.perf_counter() if first is None else first
    last = max(last, first)
    if usage.completion_tokens < 1:
        raise _Fault(f"stream: expected at least one token, got {usage.completion_tokens}")
    return Sample(first - begin, last - begin, usage.prompt_tokens, usage.completion_tokens, finish)


def _words(count: int) -> str:
    """Return a prompt of so many words; how many tokens one is, the completion check finds out."""
    words = _WORDS.split()
    return " ".join(words[number % len(words)] for number in range(count))


def _first_choice(answer: Any) -> Any:
    choices = getattr(answer, "choices", None)
    if not choices:
        raise _Fault(f"bad answer: expected one choice, got {str(answer)[:120]!r}")
    return choices[0]


def _check_answer(session: _Session, answer: Any, text: Any, finish: Any, most: int) -> str:
    """Hold an answer to what was asked for: model, text, reason, count of tokens."""
    if answer.model != session.model:
        raise _Fault(f"wrong model: expected an answer by {session.model}, got one by {answer.model}")
    if not isinstance(text, str) and text is not None:
        raise _Fault(f"bad answer: expected text, got {text!r}")
    if finish not in ("stop", "length"):
        raise _Fault(f"bad answer: expected finish_reason stop or length, got {finish!r}")
    tokens = getattr(answer.usage, "completion_tokens", None)
    if not isinstance(tokens, int) or not 1 <= tokens <= most:
        raise _Fault(f"bad answer: expected 1 to {most} tokens, got {tokens}")
    return f"{tokens} tokens, {finish}"


def _expect_status(request: Callable[[], object], status: int) -> str:
    import openai

    try:
        request()
    except openai.APIStatusError as err:
        if err.status_code == status:
            return str(status)
        raise _Fault(f"expected status {status}, got {_describe(err)}") from err
    raise _Fault(f"expected status {status}, got an answer")


def _describe(err: BaseException) -> str:
    """Name a client's error by what the server did."""
    import openai

    if isinstance(err, openai.APITimeoutError) or "timeout" in type(err).__name__.lower():
        return "timed out: expected an answer in time, got none"
    if isinstance(err, openai.APIStatusError):
        return f"status {err.status_code}: {_message(err)}"
    if isinstance(err, (json.JSONDecodeError, openai.APIResponseValidationError)):
        return f"bad JSON: {err}"
    cause = err.__cause__
    if isinstance(err, openai.APIConnectionError) and "protocol" not in type(cause).__name__.lower():
        return f"no connection: {cause or err}"
    kind = f"{type(err).__name__} {type(cause).__name__}".lower()
    if "protocol" in kind or "readerror" in kind or isinstance(err, openai.APIConnectionError):
        return f"cut stream: the connection ended within the answer ({cause or err})"
    if isinstance(err, openai.APIError):
        return f"error in the answer: {err.message}"
    return f"bad answer: {type(err).__name__}: {err}"


def _message(err: Any) -> str:
    # The client takes the object under "error" out of the answer where there is one.
    body = err.body
    text = body.get("message") if isinstance(body, dict) else body
    return str(text or err.message).strip()[:200]

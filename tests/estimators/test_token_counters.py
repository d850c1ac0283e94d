"""How many tokens a prompt has."""

import subprocess
import sys
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Usage
from driftsched.estimators import COUNTERS, DEFAULT_COUNTER, create_counter
from driftsched.estimators.tokens import MAX_MODELS, BytesCounter
from support.prompts import request_of


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> str:
    """A vocabulary in which every word and every punctuation mark is a token, truncating as some published do."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=64)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def test_the_default_is_registered() -> None:
    assert DEFAULT_COUNTER in COUNTERS.names()
    assert COUNTERS.names() == ["bytes", "tokenizer", "whitespace"]


def test_whitespace_counts_words() -> None:
    assert create_counter("whitespace").count(request_of(prompt=" one, two\nthree ")) == 3


def test_whitespace_takes_the_rest_of_a_long_prompt_to_be_like_its_head() -> None:
    request = request_of(prompt="five " * 20, prompt_bytes=1000)
    assert create_counter("whitespace").count(request) == 200


def test_a_head_is_counted_even_if_the_whole_was_not_measured() -> None:
    assert create_counter("whitespace").count(request_of(prompt="one two three", prompt_bytes=0)) == 3


@pytest.mark.parametrize(("prompt_bytes", "tokens"), [(0, 0), (400, 100)])
def test_a_prompt_without_a_head_is_counted_by_its_bytes(prompt_bytes: int, tokens: int) -> None:
    assert tokens == create_counter("whitespace").count(request_of(prompt="", prompt_bytes=prompt_bytes))


def test_bytes_are_four_to_a_token_at_first() -> None:
    assert create_counter("bytes").count(request_of(prompt_bytes=1000)) == 250


def test_bytes_per_token_are_learnt_from_each_model() -> None:
    rng, counter = Random(1), create_counter("bytes")
    for _ in range(100):
        prompt_bytes = rng.randint(100, 5000)
        tokens = round(prompt_bytes / rng.gauss(2.5, 0.2))
        counter.learn(request_of(model="a", prompt_bytes=prompt_bytes), Usage(tokens, 10))
    assert pytest.approx(400, rel=0.05) == counter.count(request_of(model="a", prompt_bytes=1000))
    assert counter.count(request_of(model="b", prompt_bytes=1000)) == 250


@pytest.mark.parametrize("tokens", [0, -1, -(10**9), 10**9, 10**400, float("nan"), float("inf")], ids=range(7))
def test_absurd_counts_teach_the_bytes_counter_nothing(tokens: Any) -> None:
    counter = BytesCounter()
    counter.learn(request_of(prompt_bytes=1000), Usage(tokens, 10))
    counter.learn(request_of(prompt_bytes=10**9), Usage(5, 10))  # an image, as a data URL
    counter.learn(request_of(prompt_bytes=0), Usage(5, 10))
    assert counter.count(request_of(prompt_bytes=1000)) == 250


def test_one_odd_count_hardly_moves_the_bytes_counter() -> None:
    counter = BytesCounter()
    for _ in range(50):
        counter.learn(request_of(prompt_bytes=1000), Usage(250, 10))
    counter.learn(request_of(prompt_bytes=1000), Usage(3999, 10))
    assert pytest.approx(250, rel=0.2) == counter.count(request_of(prompt_bytes=1000))


def test_the_bytes_counter_forgets_the_model_not_heard_of_for_longest() -> None:
    counter = BytesCounter()
    for i in range(MAX_MODELS + 1):
        counter.learn(request_of(model=f"model-{i}", prompt_bytes=1000), Usage(500, 10))
    assert counter.count(request_of(model="model-0", prompt_bytes=1000)) == 250
    assert counter.count(request_of(model="model-1", prompt_bytes=1000)) > 250


@pytest.mark.parametrize("alpha", [0, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="token counter 'bytes' cannot be made: alpha must be > 0 and <= 1"):
        create_counter("bytes", alpha=alpha)


def test_a_tokenizer_counts_every_token_of_the_text(tokenizer_json: str) -> None:
    counter = create_counter("tokenizer", path=tokenizer_json)
    assert counter.count(request_of(prompt="one, two: three! four five six")) == 9


def test_a_tokenizer_takes_the_rest_of_a_long_prompt_to_be_like_its_head(tokenizer_json: str) -> None:
    counter = create_counter("tokenizer", path=tokenizer_json)
    assert counter.count(request_of(prompt="one! " * 20, prompt_bytes=1000)) == 400


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "absent.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        ConfigError, match=r"token counter 'tokenizer': path '.*/absent\.json' is no tokenizer\.json"
    ):
        create_counter("tokenizer", path=str(path))


def test_a_missing_library_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from driftsched.estimators import create_counter\n"
        "try: create_counter('tokenizer', path='x')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "ConfigError token counter 'tokenizer' needs: pip install driftsched[tokenizer]\n"


@pytest.mark.parametrize("name", ["whitespace", "bytes"])
@pytest.mark.parametrize("prompt", ["", " ", "a" * 10_000, "漢字" * 1000, "\x00\n" * 100])
def test_any_text_gets_a_finite_count(name: str, prompt: str) -> None:
    count = create_counter(name).count(request_of(prompt=prompt))
    assert isfinite(count)
    assert count >= 0

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.specs import parse_spec, spec_text


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("fifo", "fifo", {}),
        ("slack:beta=2", "slack", {"beta": 2}),
        ("slack:beta=0.5", "slack", {"beta": 0.5}),
        ("composite:inner=fifo,reserve=0.2", "composite", {"inner": "fifo", "reserve": 0.2}),
        (" lag : tokens = 5000 , beta = 0 ", "lag", {"tokens": 5000, "beta": 0}),
        ("mine:strict=true,loud=false", "mine", {"strict": True, "loud": False}),
    ],
)
def test_a_part_is_read_with_its_options(text: str, name: str, options: dict[str, object]) -> None:
    assert (name, options) == parse_spec(text)


@pytest.mark.parametrize(
    "text", ["", ":beta=2", "slack:", "slack:beta", "slack:beta=", "slack:beta=1,beta=2", "a:,"]
)
def test_what_is_not_of_the_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write NAME"):
        parse_spec(text)


@pytest.mark.parametrize("text", ["fifo", "slack:beta=2", "composite:inner=fifo,reserve=0.2", "mine:strict=true"])
def test_a_part_is_written_as_it_is_read(text: str) -> None:
    assert text == spec_text(*parse_spec(text))


def test_equal_parts_are_equal_texts() -> None:
    assert spec_text("lag", {"tokens": 5000.0, "beta": 0}) == spec_text("lag", {"beta": 0.0, "tokens": 5000})

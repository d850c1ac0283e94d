"""A part and its options in one word, as in `slack:beta=2` or `lag:tokens=5000,beta=0`."""

from collections.abc import Mapping

from driftsched.core.errors import ConfigError

_WORDS: dict[str, object] = {"true": True, "false": False}


def parse_spec(text: str) -> tuple[str, dict[str, object]]:
    """Name and options. A value is a number or `true` or `false` if it reads as one, else text.

    Raises `ConfigError` for what is not of the form; whether the part exists and takes the options is for the
    registry to say.
    """
    name, colon, rest = (word.strip() for word in text.partition(":"))
    options: dict[str, object] = {}
    for pair in rest.split(",") if colon else ():
        option, equals, value = (word.strip() for word in pair.partition("="))
        if not (option and equals and value) or option in options:
            raise ConfigError(f"{text!r}: write NAME or NAME:option=value,option=value, each option once")
        options[option] = _value(value)
    if not name:
        raise ConfigError(f"{text!r}: begins with no name: write NAME or NAME:option=value")
    return name, options


def spec_text(name: str, options: Mapping[str, object]) -> str:
    """The one way to write a part, so that equal ones are equal texts: options by name, no needless zeros."""
    written = ",".join(f"{option}={_text(options[option])}" for option in sorted(options))
    return f"{name}:{written}" if written else name


def _value(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)

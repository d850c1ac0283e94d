"""Prompts labelled by hand, with the category a reader would give them."""

from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).parent.parent / "data" / "labelled_prompts.tsv"


class Labelled(NamedTuple):
    category: str
    prompt: str


def labelled_prompts() -> list[Labelled]:
    """All of them. The rules were made with every first one of a pair in sight; every second one was held out."""
    rows = (line.split("\t") for line in PATH.read_text(encoding="utf-8").splitlines())
    return [Labelled(category, prompt.replace("\\n", "\n")) for category, prompt in rows]

"""Prompts in our own wording, by kind of request. No prompt carries a label: its wording is all there is."""

from random import Random

TOPICS = (
    "tidal power",
    "the water cycle",
    "public libraries",
    "container ports",
    "urban bees",
    "battery recycling",
    "the printing press",
    "night trains",
    "coral reefs",
    "weather forecasts",
    "vertical farming",
    "traffic lights",
    "satellite navigation",
    "bread baking",
    "earthquake warning",
    "open source software",
    "glacier melt",
    "hospital logistics",
    "wind turbines",
    "postal services",
)

TEMPLATES = {
    "short_qa": (
        "What is {topic} good for?",
        "Who pays for {topic}?",
        "Name one risk of {topic}.",
        "When did {topic} become common?",
    ),
    "summary": (
        "Summarize the main ideas behind {topic}.",
        "Give me a summary of how {topic} changed over the last century.",
        "Summarize the arguments for and against {topic}.",
    ),
    "technical": (
        "Show the architecture of a system that monitors {topic}.",
        "Write code that models {topic} and explain each step.",
        "Explain the technical limits of {topic}.",
    ),
    "report": (
        "Write a detailed report on {topic} for a city council.",
        "Write a comprehensive report about the future of {topic}.",
        "I need a detailed study of {topic} with recommendations.",
    ),
}
"""Kind of request -> wordings. The kinds are those that the reference's keyword classifier tells apart."""


def draw_prompt(kind: str, random: Random) -> str:
    """A prompt of that kind."""
    return random.choice(TEMPLATES[kind]).format(topic=random.choice(TOPICS))

"""Load and measures: open-loop traffic against any OpenAI endpoint, and what it saw."""

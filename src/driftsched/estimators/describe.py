"""What a prompt tells about its request."""

from dataclasses import replace
from typing import Protocol

from driftsched.core.model import Request, Usage
from driftsched.estimators.tokens import TokenCounter


class Classifier(Protocol):
    """Tells what kind of request a prompt is."""

    def classify(self, prompt: str) -> str:
        """A category, of a handful. Pure: the same state and prompt give the same one."""
        ...

    def learn(self, prompt: str) -> None:
        """A prompt that was served. What is kept of it must be bounded, and no text."""
        ...


class PromptDescriber:
    """Fill in category and prompt tokens; a request that brings them, as a trace's does, keeps its own."""

    def __init__(self, classifier: Classifier, counter: TokenCounter) -> None:
        self._classifier = classifier
        self._counter = counter

    def describe(self, request: Request) -> Request:
        if request.category and request.prompt_tokens:
            return request
        return replace(
            request,
            category=request.category or self._classifier.classify(request.prompt),
            prompt_tokens=request.prompt_tokens or self._counter.count(request),
        )

    def learn(self, request: Request, usage: Usage) -> None:
        self._classifier.learn(request.prompt)
        self._counter.learn(request, usage)

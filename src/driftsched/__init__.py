"""driftsched: an OpenAI-compatible gateway that predicts, queues and corrects."""

__version__ = "0.1.0"

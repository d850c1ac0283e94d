"""Who generates: any OpenAI-compatible server over HTTP, or a pure batching model on the wall clock."""

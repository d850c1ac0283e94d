"""The live driver: OpenAI's HTTP API in front, the scheduler behind, engines at the end."""

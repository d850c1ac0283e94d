"""A real model on this machine's CPU: llama.cpp's server and a small model's weights, from package registries."""

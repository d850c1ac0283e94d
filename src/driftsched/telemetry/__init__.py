"""Listeners: each turns the scheduler's events into something an operator can look at."""

"""Listeners, which turn the scheduler's events into something to look at; and what was learnt, kept in a file."""

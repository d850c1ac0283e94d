"""Listeners, which turn the events of the scheduler into something to look at; and what was learnt, kept in a file."""

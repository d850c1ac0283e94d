"""The pure heart: nouns, protocols, the two-level order and the scheduler.

Nothing in here opens a socket, reads a clock or imports asyncio; `now` is always an argument. The live gateway,
the simulator and the tests drive the same objects.
"""

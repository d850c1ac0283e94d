"""Logging that never waits."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Signal

from driftsched.telemetry.background import BackgroundHandler


@contextmanager
def logging_to(handler: BackgroundHandler) -> Iterator[logging.Logger]:
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_lines_are_written_in_order_and_all_of_them_before_it_closes() -> None:
    written: list[bytes] = []
    with logging_to(BackgroundHandler(written.append)) as logger:
        for number in range(1000):
            logger.info("line %d", number)
    assert b"".join(b"line %d\n" % number for number in range(1000)) == b"".join(written)


def test_who_logs_does_not_wait_for_who_reads() -> None:
    entered, read = Signal(), Signal()
    written: list[bytes] = []

    def write(lines: bytes) -> None:
        entered.set()
        read.wait(20)
        written.append(lines)

    handler = BackgroundHandler(write, max_queued=3)
    with logging_to(handler) as logger:
        logger.info("first")
        assert entered.wait(20)
        for number in range(10):
            logger.info("line %d", number)
        assert 7 == handler.dropped
        read.set()
    assert b"first\nline 0\nline 1\nline 2\n7 lines dropped\n" == b"".join(written)


def test_a_log_that_cannot_be_written_to_is_given_up_and_tried_again_with_the_next_line() -> None:
    written: list[bytes] = []
    failed = Signal()

    def write(lines: bytes) -> None:
        if not failed.is_set():
            failed.set()
            raise BrokenPipeError
        written.append(lines)

    with logging_to(BackgroundHandler(write)) as logger:
        logger.info("lost")
        assert failed.wait(20)
        logger.info("written")
    assert b"".join(written) in (b"written\n", b"")


def test_a_message_that_makes_no_sense_harms_nobody() -> None:
    written: list[bytes] = []
    raises, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with logging_to(BackgroundHandler(written.append)) as logger:
            logger.info("%d", "no number")
            logger.info("half a pair: %s", "\ud800")
    finally:
        logging.raiseExceptions = raises
    assert b"half a pair: \\ud800\n" == b"".join(written)

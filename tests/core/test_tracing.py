import pytest

from driftsched.core.tracing import Span, parse_traceparent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("ff", True)])
def test_a_caller_says_whether_its_trace_is_recorded(flags: str, sampled: bool) -> None:
    assert Span(TRACE, PARENT, "", sampled) == parse_traceparent(f"00-{TRACE}-{PARENT}-{flags}")


def test_later_versions_are_read_as_far_as_this_one_goes() -> None:
    assert Span(TRACE, PARENT, "", True) == parse_traceparent(f"cc-{TRACE}-{PARENT}-01-what-else")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-1-2-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
        f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0g",
    ],
)
def test_what_is_no_valid_header_begins_a_trace_anew(header: str) -> None:
    assert parse_traceparent(header) is None


@pytest.mark.parametrize("sampled", [True, False])
def test_a_span_is_told_to_others_in_a_header_that_can_be_read_back(sampled: bool) -> None:
    span = Span(TRACE, PARENT, "", sampled)
    assert span == parse_traceparent(span.traceparent)

"""What the gateway puts into its log about a call."""

import aiohttp
import pytest

from driftsched.config import LogSettings
from driftsched.core.events import Finished
from driftsched.observing import log_format, open_access_log
from support.servers import chat, live_gateway, simulated


@pytest.mark.parametrize("theirs", ["req-7", None])
async def test_a_line_names_the_request_as_its_client_knows_it(
    theirs: str | None, http: aiohttp.ClientSession
) -> None:
    headers = {"x-request-id": theirs} if theirs else {}
    async with live_gateway(simulated()) as house:
        async with http.post(f"{house.url}/v1/chat/completions", json=chat(), headers=headers) as response:
            await response.read()
        await house.settled()
        [end] = house.of(Finished)
        assert response.headers["x-request-id"] == end.ticket.request.public_id
        assert theirs in (end.ticket.request.public_id, None)


@pytest.mark.parametrize("asked", ["json", "text"])
def test_the_form_is_what_was_asked_for(asked: str) -> None:
    assert asked == log_format(LogSettings(format=asked))  # type: ignore[arg-type]  # a literal, by the list above


@pytest.mark.parametrize(("terminal", "expected"), [(True, "text"), (False, "json")])
def test_people_are_told_in_text_and_programs_in_json_unless_they_ask(terminal: bool, expected: str) -> None:
    assert expected == log_format(LogSettings(), terminal)


def test_there_is_no_access_log_unless_it_is_wanted() -> None:
    assert open_access_log(LogSettings(access=False)) is None
    assert open_access_log(LogSettings()) is not None

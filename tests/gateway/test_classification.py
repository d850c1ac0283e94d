"""Which classifier a gateway asks."""

import aiohttp
import pytest

from driftsched.config import PartSettings, Settings
from driftsched.core.events import Admitted
from support.servers import chat, live_gateway, simulated


@pytest.mark.parametrize(
    ("settings", "category"),
    [
        (Settings(), "other"),
        (Settings(classifier=PartSettings("rules", {"reassign": False})), "other"),
        (Settings(classifier=PartSettings("keywords")), "technical"),
    ],
)
async def test_the_classifier_of_the_settings_tells_the_category(
    http: aiohttp.ClientSession, settings: Settings, category: str
) -> None:
    call = chat("Translate: the code of conduct")
    async with (
        live_gateway(simulated(), settings=settings) as house,
        http.post(f"{house.url}/v1/chat/completions", json=call) as response,
    ):
        assert 200 == response.status
        await response.read()
        (admitted,) = house.of(Admitted)
        assert category == admitted.ticket.request.category

import pytest

from driftsched.core.errors import ConfigError
from driftsched.engines.presets import HARDWARE, Hardware, get_hardware


@pytest.mark.parametrize(
    ("num_seqs", "expected_ms"),
    [(1, 14.8), (8, 16.4), (32, 21.7), (64, 28.8)],
)
def test_a_decode_step_on_an_l4_takes_the_published_time_at_256_tokens_of_context(
    num_seqs: int, expected_ms: float
) -> None:
    step_ms = get_hardware("l4-qwen1.5-1.8b").step_seconds(num_seqs, num_seqs, 256 * num_seqs) * 1e3

    assert pytest.approx(expected_ms, rel=0.01) == step_ms


def test_a_step_is_the_sum_of_its_terms() -> None:
    hardware = Hardware(
        name="round",
        host_ms=1,
        floor_ms=10,
        g0_ms=2,
        g_us_per_token=100,
        r_us_per_sequence=1000,
        kv_ns_per_token=1000,
        api_ms=0,
        kv_tokens=1000,
        source="measured",
        note="",
    )

    assert pytest.approx(0.001 + 0.010 + 0.003 + 0.005) == hardware.step_seconds(3, 3, 5000)
    assert pytest.approx(0.001 + 0.022 + 0.003 + 0.005) == hardware.step_seconds(200, 3, 5000)


def test_without_cuda_graphs_a_step_costs_more_host_time_and_nothing_else() -> None:
    graphs, eager = get_hardware("l4-qwen1.5-1.8b"), get_hardware("l4-qwen1.5-1.8b-eager")

    assert pytest.approx(1e-3) == eager.step_seconds(32, 32, 8192) - graphs.step_seconds(32, 32, 8192)


def test_the_eager_preset_holds_the_context_of_the_papers_smaller_memory_share() -> None:
    assert 57_000 == get_hardware("l4-qwen1.5-1.8b-eager").kv_tokens


@pytest.mark.parametrize("hardware", HARDWARE.values(), ids=lambda hardware: hardware.name)
def test_every_preset_says_how_each_of_its_terms_is_known(hardware: Hardware) -> None:
    terms = ("floor", "g", "r", "kv", "host", "api", "kv_tokens")

    assert [] == [term for term in terms if term not in hardware.note.replace(",", " ").replace(":", " ").split()]


def test_an_unknown_hardware_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown hardware 'b200': use one of l4-qwen1\.5-1\.8b, .*h100-llama3-8b"
    ):
        get_hardware("b200")

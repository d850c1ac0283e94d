import re
from pathlib import Path

import pytest

from driftsched.bench.load import Hit
from driftsched.bench.processes import StartError, running
from driftsched.bench.prompts import TEMPLATES, TOPICS
from driftsched.demo import ARMS, TENANTS, local_scene, render, run_demo, simulated_scene, workload
from driftsched.estimators.categories import KeywordClassifier

SECONDS = 12.0


def hits_of(number: int) -> list[Hit]:
    shots = workload(simulated_scene(SECONDS, 1), SECONDS, 1)
    return [
        Hit(
            shot,
            sent_at=shot.at,
            first_token_at=shot.at + 0.1 * number,
            finished_at=shot.at + number + shot.at / 100,
            status=200,
            queue_seconds=0.05 * number,
            predicted_tokens=100,
            completion_tokens=100 + 10 * number,
            finish_reason="stop",
        )
        for shot in shots
    ]


def plain(text: str) -> str:
    """Without the markup of the terminal."""
    return re.sub(r"\[/?(?:bold)?\]", "", text)


def test_every_arm_is_driven_by_the_same_requests() -> None:
    scene = simulated_scene(SECONDS, 7)
    assert workload(scene, SECONDS, 7) == workload(scene, SECONDS, 7)
    assert workload(scene, SECONDS, 7) != workload(scene, SECONDS, 8)


def test_the_workload_is_poisson_at_its_rate_and_shared_by_three_tiers() -> None:
    scene = simulated_scene(100.0, 3)
    shots = workload(scene, 100.0, 3)
    assert len(shots) == pytest.approx(scene.rate * 100, rel=0.05)
    assert sorted(shots, key=lambda shot: shot.at) == shots
    for tier in TENANTS.values():
        share = sum(shot.tier == tier.label for shot in shots) / len(shots)
        assert share == pytest.approx(1 / 3, abs=0.03)


def test_the_wording_of_a_prompt_tells_its_kind_and_nothing_else_does() -> None:
    classify = KeywordClassifier().classify
    for kind, templates in TEMPLATES.items():
        for template in templates:
            for topic in TOPICS:
                assert kind == classify(template.format(topic=topic))


def test_a_local_model_drifts_because_it_is_told_to() -> None:
    scene = local_scene()
    shots = workload(scene, 60.0, 1)
    told = {(shot.at >= 60.0 * scene.drift_share, shot.messages[0]["content"]) for shot in shots}
    assert {(False, scene.before), (True, scene.after)} == told


def test_the_report_fits_eighty_columns_and_names_every_arm() -> None:
    results = {arm: hits_of(number) for number, arm in enumerate(ARMS, 1)}
    shots = [hit.shot for hit in results[ARMS[0]]]
    lines = plain(render(simulated_scene(SECONDS, 1), shots, SECONDS, 1, results)).splitlines()
    assert max(map(len, lines)) <= 80
    for arm in ARMS:
        assert sum(line.startswith(f"{arm.policy:6} {arm.feedback}") for line in lines) == 2


def test_figures_in_the_report_are_those_of_the_hits() -> None:
    results = {arm: hits_of(number) for number, arm in enumerate(ARMS, 1)}
    shots = [hit.shot for hit in results[ARMS[0]]]
    text = plain(render(simulated_scene(SECONDS, 1), shots, SECONDS, 1, results))
    fifo = next(line for line in text.splitlines() if line.startswith("fifo"))
    assert fifo.split()[2:5] == ["0.05", "0.05", "0.05"]
    assert fifo.split()[-1] == "10"
    assert "0 failed" in text


def test_a_report_of_a_run_without_answers_says_so_instead_of_failing() -> None:
    shots = workload(simulated_scene(SECONDS, 1), SECONDS, 1)
    results = {arm: [Hit(shot, error="http_503") for shot in shots] for arm in ARMS}
    text = plain(render(simulated_scene(SECONDS, 1), shots, SECONDS, 1, results))
    assert f"{len(shots) * len(ARMS)} failed" in text
    assert "n/a" in text


async def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(StartError, match="unknown length profile"):
        async with running("mock", "--profile", "nonsense", "--port", "0"):
            pass


@pytest.mark.e2e
def test_the_demo_runs_every_arm_over_real_http(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    run_demo(local=False, seconds=4.0, seed=1)
    said = capsys.readouterr().out
    assert "0 failed" in said
    for arm in ARMS:
        assert f"{arm.policy:6} {arm.feedback}" in said
    assert [] == list(tmp_path.iterdir()), "an arm knows what another one learnt"


async def test_a_timeout_of_whoever_uses_a_server_is_not_taken_for_its_start() -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with running("mock", "--port", "0"):
            raise TimeoutError("mine")

import json
from pathlib import Path

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.commands import trace_export, trace_gen, trace_info
from driftsched.sim.readers import read_trace
from driftsched.sim.workloads import gamma, generate


def test_a_generated_trace_is_written_as_drawn(tmp_path: Path) -> None:
    target = tmp_path / "gamma.jsonl.gz"

    text = trace_gen("gamma", target, options={"rate": "4", "cv": "3", "requests": "50"}, seed=5)

    rows = generate(gamma(rate=4.0, cv=3.0, requests=50), seed=5)
    assert rows == read_trace(target)
    assert f"wrote 50 requests over {rows[-1].at:.1f} s to {target}" == text


def test_a_workload_by_load_is_generated_for_a_capacity(tmp_path: Path) -> None:
    trace_gen("poisson", tmp_path / "t.csv", options={"rho": "0.5", "requests": "9"}, capacity=8, format="csv")
    trace_gen("poisson", tmp_path / "u.csv", options={"rate": "4", "requests": "9"}, format="csv")
    assert (tmp_path / "u.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()


def test_an_export_cuts_then_rescales_then_assigns(tmp_path: Path) -> None:
    source, target = tmp_path / "source.csv", tmp_path / "target.jsonl"
    source.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{at},{at + 1},7\n" for at in range(20)))

    text = trace_export(source, target, start=5.0, end=15.0, rate=2.0, tenants=1, tiers={Tier.BATCH: 1.0})

    rows = read_trace(target)
    assert f"wrote 10 requests over 4.5 s to {target}" == text
    assert [0.5 * number for number in range(10)] == [row.at for row in rows]
    assert [6, 15] == [rows[0].prompt_tokens, rows[-1].prompt_tokens]
    assert {("tenant-0", Tier.BATCH)} == {(row.tenant, row.tier) for row in rows}


def test_an_export_alone_changes_nothing(tmp_path: Path) -> None:
    trace_gen("flood", tmp_path / "one.jsonl", options={"rate": 5.0, "requests": 30})
    trace_export(tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_an_export_can_sort_and_skip(tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_text("arrival_s,input_tokens,output_tokens\n2,1,1\n1,2,2\n3,3,0\n")
    with pytest.raises(ConfigError, match="must be between 1"):
        trace_export(source, tmp_path / "target.jsonl", sort=True)
    trace_export(source, tmp_path / "target.jsonl", sort=True, skip_empty=True, source_format="csv", max_requests=9)
    assert [2, 1] == [row.prompt_tokens for row in read_trace(tmp_path / "target.jsonl")]


def test_info_is_a_table_of_eighty_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    trace_gen("poisson", path, options={"rate": "5", "requests": "400"})
    wide = tmp_path / "wide.jsonl"
    trace_export(path, wide, tenants=400)

    text = trace_info(path)

    assert text.startswith("requests              400\nduration              ")
    assert "tenants               tenant-0 1" in text
    assert 80 >= max(map(len, (text + "\n" + trace_info(wide)).splitlines()))
    assert "more" in trace_info(wide)


def test_info_of_requests_that_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n1,1,1\n")
    assert "rate                  all at once\nburstiness            -\n" in trace_info(path)


def test_info_as_json_has_the_whole_hash(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n1,1,1\n3,5,6\n")
    facts = json.loads(trace_info(path, as_json=True))
    assert (2, 2.0, 0.5, 64) == (facts["requests"], facts["duration_seconds"], facts["rate"], len(facts["hash"]))

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.readers import read_trace
from driftsched.sim.trace import Row, on_grid, trace_hash
from driftsched.sim.writers import write_trace

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def traces(draw: st.DrawFn) -> list[Row]:
    times = sorted(draw(st.lists(st.floats(0, 1e8), min_size=1, max_size=8)))
    return [draw(rows(on_grid(at))) for at in times]


@st.composite
def rows(draw: st.DrawFn, at: float) -> Row:
    completion_tokens = draw(st.integers(1, 10_000_000))
    return Row(
        at,
        draw(st.integers(1, 10_000_000)),
        completion_tokens,
        draw(NAMES),
        draw(st.sampled_from(Tier)),
        draw(NAMES),
        draw(NAMES),
        draw(st.none() | st.integers(completion_tokens, 10_000_000)),
        draw(st.none() | NAMES),
        draw(NAMES),
        draw(st.just("") | NAMES),
        draw(st.booleans()),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.mark.parametrize(("format", "name"), [("jsonl", "t.jsonl"), ("csv", "t.csv"), ("jsonl", "t.jsonl.gz")])
@given(trace=traces())
def test_our_own_formats_keep_every_field(folder: Path, format: str, name: str, trace: list[Row]) -> None:
    write_trace(trace, folder / name, format)
    assert trace == read_trace(folder / name, format=format)


TRACE = [
    Row(0.0, 374, 44, "acme", Tier.PREMIUM, session="s1"),
    Row(4.314579, 396, 109, max_tokens=109, model="big"),
    Row(86400.0, 879, 55, after_drain=True),
]


def test_our_line_is_a_mooncake_line_with_more(tmp_path: Path) -> None:
    write_trace(TRACE[:1], tmp_path / "t.jsonl")
    assert (
        '{"timestamp":0,"input_length":374,"output_length":44,"session_id":"s1","extra":{"user":"acme"},'
        '"tenant":"acme","tier":"premium","category":"short_qa","model":"model","phase":"steady"}\n'
    ) == (tmp_path / "t.jsonl").read_text()


def test_mooncake_has_whole_milliseconds_and_the_tenant_as_user(tmp_path: Path) -> None:
    write_trace(TRACE[:2], tmp_path / "t.jsonl", "mooncake")
    assert [
        '{"timestamp":0,"input_length":374,"output_length":44,"session_id":"s1","extra":{"user":"acme"}}',
        '{"timestamp":4315,"input_length":396,"output_length":109,"extra":{"user":"default"}}',
    ] == (tmp_path / "t.jsonl").read_text().splitlines()


def test_azure_has_dates_to_the_microsecond(tmp_path: Path) -> None:
    write_trace(TRACE, tmp_path / "t.csv", "azure")
    assert [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2024-01-01 00:00:00.000000+00:00,374,44",
        "2024-01-01 00:00:04.314579+00:00,396,109",
        "2024-01-02 00:00:00.000000+00:00,879,55",
    ] == (tmp_path / "t.csv").read_text().splitlines()


def test_burstgpt_has_its_totals(tmp_path: Path) -> None:
    write_trace(TRACE[:2], tmp_path / "t.csv", "burstgpt")
    assert [
        "Timestamp,Session ID,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "0.0,s1,model,374,44,418,API log",
        "4.314579,,big,396,109,505,API log",
    ] == (tmp_path / "t.csv").read_text().splitlines()


@pytest.mark.parametrize("format", ["azure", "burstgpt"])
def test_what_another_format_has_a_place_for_comes_back(tmp_path: Path, format: str) -> None:
    write_trace(TRACE, tmp_path / "t.csv", format)
    back = read_trace(tmp_path / "t.csv")
    assert [(row.at, row.prompt_tokens, row.completion_tokens) for row in TRACE] == [
        (row.at, row.prompt_tokens, row.completion_tokens) for row in back
    ]


def test_the_same_rows_give_the_same_bytes_when_compressed(tmp_path: Path) -> None:
    write_trace(TRACE, tmp_path / "one.jsonl.gz")
    write_trace(TRACE, tmp_path / "two.jsonl.gz")
    data = (tmp_path / "one.jsonl.gz").read_bytes()
    assert data == (tmp_path / "two.jsonl.gz").read_bytes()
    assert b"\0\0\0\0" == data[4:8]  # no time of writing
    assert 3 == len(gzip.decompress(data).splitlines())


def test_the_hash_does_not_depend_on_the_file(tmp_path: Path) -> None:
    for format, name in (("jsonl", "t.jsonl.gz"), ("csv", "t.csv")):
        write_trace(TRACE, tmp_path / name, format)
        assert trace_hash(TRACE) == trace_hash(read_trace(tmp_path / name))


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write 'parquet': use one of jsonl, mooncake, csv"):
        write_trace(TRACE, tmp_path / "t", "parquet")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/t\.jsonl: No such file"):
        write_trace(TRACE, tmp_path / "missing" / "t.jsonl")

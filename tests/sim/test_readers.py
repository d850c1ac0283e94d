"""Every layout as it is in the wild, and everything that may be wrong with a file."""

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.readers import LAYOUTS, MAX_LINE_BYTES, Layout, read_trace
from driftsched.sim.trace import Row
from driftsched.sim.writers import WRITERS

Save = Callable[[str | bytes], Path]

AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""

AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 00:00:01+00:00,76,15
"""

MOONCAKE = """\
{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14], "session_id": 7}
{"timestamp": 3000.5, "input_length": 10, "output_length": 20, "extra": {"user": "acme", "top_p": 1}}
"""

BURSTGPT_1 = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
60,ChatGPT,0,0,0,Conversation log
118,GPT-4,417,276,693,Conversation log
"""

BURSTGPT_3 = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log
19440161.25,d5983bf9-4b48,2,ChatGPT,36,29,65,Conversation log
"""

SERVEGEN = """\
request_id,timestamp,input_tokens,output_tokens,client_id
0,0.25,170,26,49
1,0.75,555,3,143
"""

VIDUR = """\
arrived_at,num_prefill_tokens,num_decode_tokens
0.0,374.0,44
4.3,396,109.0
"""

GENERIC = """\
arrival_s,input_tokens,output_tokens,session,turn,tenant
0.0,6758,500,0,0,a
0.5,7322,490,1,0,b
"""


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(content: str | bytes) -> Path:
        path = tmp_path / "trace"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return save


def test_azure_of_2023_counts_from_its_first_row(save: Save) -> None:
    assert [Row(0.0, 374, 44), Row(4.314579, 396, 109), Row(4.541877, 879, 55)] == read_trace(save(AZURE_2023))


def test_azure_of_2024_has_time_zones(save: Save) -> None:
    assert [Row(0.0, 2162, 5), Row(0.007405, 2399, 6), Row(0.99007, 76, 15)] == read_trace(save(AZURE_2024))


def test_time_zones_may_change_from_row_to_row_and_none_means_utc(save: Save) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    path = save(f"{head}2024-05-10 02:00:00+02:00,1,1\n2024-05-10 00:00:01,2,2\n2024-05-09 20:00:02-04:00,3,3\n")
    assert [0.0, 1.0, 2.0] == [row.at for row in read_trace(path)]


def test_azure_may_have_seconds_for_dates(save: Save) -> None:
    path = save("TIMESTAMP,ContextTokens,GeneratedTokens\n100.5,1,2\n101,3,4\n")
    assert [Row(0.0, 1, 2), Row(0.5, 3, 4)] == read_trace(path)


def test_mooncake_has_milliseconds_sessions_and_users(save: Save) -> None:
    assert [
        Row(0.0, 6758, 500),
        Row(3.0, 7322, 490, session="7"),
        Row(3.0005, 10, 20, "acme"),
    ] == read_trace(save(MOONCAKE))


def test_burstgpt_leaves_out_what_its_authors_call_failures(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = read_trace(save(BURSTGPT_1))

    assert [
        Row(0.0, 472, 18, model="ChatGPT"),
        Row(40.0, 1087, 230, model="ChatGPT"),
        Row(113.0, 417, 276, model="GPT-4"),
    ] == rows
    assert "left out 1 requests without tokens" in caplog.text


def test_burstgpt_of_later_releases_has_sessions_and_a_clock_of_its_own(save: Save) -> None:
    assert [
        Row(0.0, 906, 446, model="GPT-4", session="1722ac82-0a46"),
        Row(51.25, 36, 29, model="ChatGPT", session="d5983bf9-4b48"),
    ] == read_trace(save(BURSTGPT_3))


def test_the_clients_of_servegen_are_tenants(save: Save) -> None:
    assert [Row(0.25, 170, 26, "49"), Row(0.75, 555, 3, "143")] == read_trace(save(SERVEGEN))


def test_vidur_may_write_whole_numbers_as_floats(save: Save) -> None:
    assert [Row(0.0, 374, 44), Row(4.3, 396, 109)] == read_trace(save(VIDUR))


def test_our_csv_needs_only_three_columns_and_ignores_others(save: Save) -> None:
    assert [Row(0.0, 6758, 500, "a", session="0"), Row(0.5, 7322, 490, "b", session="1")] == read_trace(
        save(GENERIC)
    )


def test_an_empty_optional_field_has_its_default(save: Save) -> None:
    path = save("arrival_s,input_tokens,output_tokens,tenant,tier,max_tokens\n1,2,3,,,\n2,2,3,a,Batch,9\n")
    assert [Row(1.0, 2, 3), Row(2.0, 2, 3, "a", Tier.BATCH, max_tokens=9)] == read_trace(path)


@pytest.mark.parametrize("text", [AZURE_2023, MOONCAKE, BURSTGPT_1, GENERIC])
def test_line_ends_byte_order_marks_blank_lines_and_gzip_make_no_difference(save: Save, text: str) -> None:
    plain = read_trace(save(text))
    assert plain == read_trace(save(text.replace("\n", "\r\n")))
    assert plain == read_trace(save("\ufeff" + text))
    assert plain == read_trace(save("\n\n" + text.replace("\n", "\n\n")))
    assert plain == read_trace(save(text.rstrip("\n")))
    assert plain == read_trace(save(gzip.compress(text.encode())))


def test_a_quoted_field_may_have_commas_and_line_breaks(save: Save) -> None:
    path = save('arrival_s,input_tokens,output_tokens,tenant\n0,"12",5,"a, ""b""\n\r\nc"\n1,2,3,d\n')
    assert [Row(0.0, 12, 5, 'a, "b"\n\r\nc'), Row(1.0, 2, 3, "d")] == read_trace(path)


def test_rows_out_of_order_are_put_in_order_on_request(save: Save) -> None:
    text = "arrival_s,input_tokens,output_tokens\n3,1,1\n1,2,2\n3,3,3\n"
    assert [2, 1, 3] == [row.prompt_tokens for row in read_trace(save(text), sort=True)]


def test_a_sorted_trace_with_a_clock_of_its_own_starts_at_its_earliest_row(save: Save) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:05,1,1\n2024-01-01 00:00:02,2,2\n"
    assert [Row(0.0, 2, 2), Row(3.0, 1, 1)] == read_trace(save(text), sort=True)


def test_rows_without_tokens_are_left_out_on_request(save: Save) -> None:
    text = "arrival_s,input_tokens,output_tokens\n1,1,0\n2,0,1\n3,1,1\n"
    assert [Row(3.0, 1, 1)] == read_trace(save(text), skip_empty=True)
    assert [Row(3.0, 1, 1)] == read_trace(
        save(
            '{"timestamp":1,"input_length":0,"output_length":1}\n{"timestamp":3000,"input_length":1,"output_length":1}'
        ),
        skip_empty=True,
    )


def test_burstgpt_failures_are_an_error_on_request(save: Save) -> None:
    with pytest.raises(ConfigError, match=r"trace:4:3: Request tokens: must be between 1 and .* not 0"):
        read_trace(save(BURSTGPT_1), skip_empty=False)


HEAD = "arrival_s,input_tokens,output_tokens,tier,max_tokens,after_drain\n0,1,1,,,\n"
LINE = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,-5,1,,,", "3:2: input_tokens: must be between 1 and 10,000,000 tokens, not -5"),
        ("1,1,0,,,", "3:3: output_tokens: must be between 1 and 10,000,000 tokens, not 0; rows without tokens can"),
        ("1,1,1.5,,,", "3:3: output_tokens: must be a whole number of tokens, not '1.5'"),
        ("1,1,nan,,,", "3:3: output_tokens: must be a number, not 'nan'"),
        ("1,1,,,,", "3:3: output_tokens: must be a number, not ''"),
        ("1,1,99999999,,,", "3:3: output_tokens: must be between 1 and 10,000,000 tokens, not 99999999"),
        (f"1,1,{'9' * 5000},,,", "3:3: output_tokens: must be a number, not '999"),
        ("NaN,1,1,,,", "3:1: arrival_s: must be a number, not 'NaN'"),
        ("inf,1,1,,,", "3:1: arrival_s: must be a number, not 'inf'"),
        ("1e12,1,1,,,", "3:1: arrival_s: must be within 1e+09 s of the start of the trace, not 1000000000000.0 s"),
        (
            "18:15:46,1,1,,,",
            "3:1: arrival_s: must be seconds or a time like 2024-05-10 00:00:00.0099, not '18:15:46'",
        ),
        ("-1,1,1,,,", "3: arrives at -1.0 s, before the row above at 0.0 s: sort the file, or ask for sorting"),
        ("1,1,1,gold,,", "3:4: tier: unknown tier 'gold': use one of premium, standard, batch"),
        ("1,1,5,,4,", "3:5: max_tokens: must be at least the answer's 5 tokens, not 4"),
        ("1,1,5,,,maybe", "3:6: after_drain: must be true or false, not 'maybe'"),
        ("1,1,1", "3:3: 3 fields, where the header has 6"),
        ("1,1,1,,,,7", "3:7: 7 fields, where the header has 6"),
        ('1,"1"1,1,,,', "3:1: not CSV: "),
        ('1,1,1,"open', "3:1: not CSV: unexpected end of data"),
        (f"1,1,1,{'x' * 200_000},,", "3:1: not CSV: field larger than field limit"),
    ],
)
def test_a_bad_row_is_told_with_line_and_column(save: Save, row: str, message: str) -> None:
    path = save(HEAD + row + "\n")
    with pytest.raises(ConfigError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}:{message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"timestamp": 1, "input_length": -5, "output_length": 1}', "2:18: input_length: must be between 1"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1.5}', "2:37: output_length: Expected `int`, got"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 0}', "2:37: output_length: must be between 1"),
        ('{"timestamp": 1, "input_length": 1}', "2:1: Object missing required field `output_length`"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "2:15: not JSON: JSON is malformed"),
        (
            '{"timestamp": "1", "input_length": 1, "output_length": 1}',
            "2:2: timestamp: Expected `float`, got `str`",
        ),
        ('{"timestamp": 1e999, "input_length": 1, "output_length": 1}', "2:2: timestamp: Number out of range"),
        ('{"timestamp": 1e15, "input_length": 1, "output_length": 1}', "2:2: timestamp: must be within 1e+09 s"),
        (
            '{"timestamp": -1, "input_length": 1, "output_length": 1}',
            "2: arrives at -0.001 s, before the row above",
        ),
        ('{"timestamp": 1, "input_length": 1, "output', "2:44: not JSON: the line ends too early"),
        ('{"timestamp": 1,}', "2:17: not JSON: JSON is malformed"),
        ('{"é": "é" "é"}', "2:11: not JSON: JSON is malformed"),
        ("[1, 2, 3]", "2:1: Expected `object`, got `array`"),
        ("1,2,3", "2:1: Expected `object`, got `int`"),
        (
            '{"timestamp": 1, "input_length": 1, "output_length": 1, "extra": {"user": [1]}}',
            "2:57: extra: Expected `int | str | null`, got `array`",
        ),
        (
            '{"timestamp": 1, "input_length": 1, "output_length": 1, "tier": "gold"}',
            "2:57: tier: unknown tier 'gold': use one of premium, standard, batch",
        ),
        (
            '{"timestamp": 1, "input_length": 1, "output_length": 9, "max_tokens": 8}',
            "2:57: max_tokens: must be at least the answer's 9 tokens, not 8",
        ),
    ],
)
def test_a_bad_json_line_is_told_with_line_and_column(save: Save, line: str, message: str) -> None:
    path = save(LINE + line + "\n")
    with pytest.raises(ConfigError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}:{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "trace: the file is empty"),
        ("\n\r\n \n", "trace: the file is empty"),
        ("arrival_s,input_tokens,output_tokens\n", "trace: no requests: the trace is empty"),
        ("arrival_s,input_tokens\n1,2\n", "trace:1:1: columns 'arrival_s', 'input_tokens' are of no known format"),
        ("a,b,arrival_s,a\n1,2\n", "trace:1:4: column 'a' comes twice"),
        ('[{"timestamp": 1}]', "trace:1:1: "),
        ("arrival_s,input_tokens,output_tokens\n-3,1,1\n", "trace: the trace begins at -3.0 s: times count from"),
        (
            "arrival_s,input_tokens,output_tokens\n0,1,1\n".encode("utf-16"),
            "trace:1:1: not UTF-8 text: invalid start",
        ),
        (b"arrival_s,input_tokens,output_tokens,tenant\n0,1,1,caf\xe9\n", "trace:2:10: not UTF-8 text: "),
        (b"\x1f\x8bnot a gzip at all", "trace:1: broken or truncated gzip: "),
        (gzip.compress(AZURE_2023.encode())[:-20], "broken or truncated gzip: "),
        (gzip.compress(AZURE_2023.encode())[:-8] + b"12345678", "broken or truncated gzip: "),
        (gzip.compress(AZURE_2023.encode()) + b"more", "broken or truncated gzip: "),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xff\xfe\n", "trace:1:11: not UTF-8 text"),
        (b"0,1,1\n" * 3, "trace:1:1: the first line must name the columns, not begin with '0'"),
        (b"\0\0\0\n", "trace:1:1: columns '\\x00\\x00\\x00' are of no known format"),
    ],
)
def test_a_bad_file_is_told(save: Save, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_trace(save(content))
    assert message in str(error.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: No such file"):
        read_trace(tmp_path / "nowhere")


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        read_trace(tmp_path)


def test_a_forced_format_names_the_columns_it_misses(save: Save) -> None:
    with pytest.raises(ConfigError, match=r"trace:1:1: no column 'ContextTokens', 'GeneratedTokens', which format"):
        read_trace(save("TIMESTAMP,a,b\n1,2,3\n"), format="azure")


def test_an_unknown_format_names_the_known(save: Save) -> None:
    with pytest.raises(
        ConfigError, match="format: unknown format 'parquet': use one of jsonl, csv, azure, burstgpt"
    ):
        read_trace(save(GENERIC), format="parquet")


def test_a_file_that_says_more_than_it_may_is_cut_short(save: Save) -> None:
    with pytest.raises(ConfigError, match=r"trace:3: more than 100 bytes: cut the trace into parts"):
        read_trace(save(AZURE_2023), max_bytes=100)


def test_a_gzip_bomb_is_defused(save: Save) -> None:
    header = b"arrival_s,input_tokens,output_tokens,prompt\n"
    bomb = gzip.compress(header + (b"0,1,1," + b"x" * 100_000 + b"\n") * 300)
    assert 100_000 > len(bomb)
    with pytest.raises(ConfigError, match="grows more than 200-fold when decompressed"):
        read_trace(save(bomb))


def test_a_bomb_of_one_line_is_defused(save: Save) -> None:
    with pytest.raises(ConfigError, match="trace:1: a line of more than 16 MiB"):
        read_trace(save(gzip.compress(b" " * (MAX_LINE_BYTES + 2))))


def test_a_message_about_a_wide_table_stays_short(save: Save) -> None:
    header = ",".join(f"column{number}" for number in range(10_000))
    with pytest.raises(ConfigError) as error:
        read_trace(save(header + "\n"))
    assert 700 > len(str(error.value))


PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_every_layout_and_its_columns_are_documented(layout: Layout) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{layout.name}` "))
    assert [] == [name for name in (*layout.required, *layout.columns) if f"`{name}`" not in line]


def test_every_field_of_a_row_is_documented() -> None:
    assert [] == [name for name in Row.__struct_fields__ if f"| `{name}` |" not in PAGE]


def test_every_format_that_is_written_is_documented() -> None:
    assert [] == [
        name for name in WRITERS if f"\n| `{name}` |" not in PAGE.partition("## Formats that are written")[2]
    ]


# The public traces, where a copy lies beside the checkout


DATA = Path(__file__).parents[3] / "shared" / "data" / "traces"


@pytest.mark.parametrize(
    ("name", "num_requests", "last_at", "num_tenants"),
    [
        ("azure2023_conv_first_half.csv.gz", 9732, 1749.8834, 1),
        ("mooncake_conversation_first_half.csv.gz", 5719, 1797.0, 1),
        ("mooncake_synthetic.csv.gz", 3993, 1022.025, 1),
        ("vtc_arena_first_half.csv.gz", 713, 299.716, 22),
        ("servegen_m_small_days2-4.csv.gz", 59996, 259199.592, 25),
        ("servegen_m_large_days1-3.csv.gz", 60066, 259200.0, 95),
    ],
)
def test_real_traces_are_read(name: str, num_requests: int, last_at: float, num_tenants: int) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip("no copy of the public traces beside the checkout")
    rows = read_trace(path)
    assert (num_requests, last_at, num_tenants) == (len(rows), rows[-1].at, len({row.tenant for row in rows}))

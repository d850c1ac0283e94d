"""Which model a form names, read without trusting whoever made it."""

from contextlib import suppress
from email.message import Message
from email.parser import BytesParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.gateway.errors import HttpError
from driftsched.gateway.forms import MAX_PARTS, read_form, with_model

TYPE = "multipart/form-data; boundary=xyz"


def form(*parts: bytes) -> bytes:
    return b"".join(b"--xyz\r\n" + part + b"\r\n" for part in parts) + b"--xyz--\r\n"


def field(name: bytes, value: bytes = b"whisper") -> bytes:
    return b"Content-Disposition: form-data; name=" + name + b"\r\n\r\n" + value


@pytest.mark.parametrize(
    "part",
    [
        field(b'"model"'),
        field(b'"model"').replace(b"; name", b";name"),
        b'content-type: text/plain\r\ncontent-disposition: FORM-DATA; name="model"\r\n\r\nwhisper',
        b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: 8bit\r\n\r\nwhisper',
    ],
)
def test_the_field_model_is_found_as_clients_write_it(part: bytes) -> None:
    read = read_form(form(field(b'"file"; filename="a"', b"\0" * 99), part), TYPE)
    assert ("whisper", "") == (read.model, read.doubt)


@pytest.mark.parametrize(
    "content_type",
    [
        TYPE.replace("xyz", '"xyz"'),
        TYPE.upper().replace("XYZ", "xyz"),
        "multipart/form-data; charset=utf-8; boundary=xyz",
        TYPE + '; charset="UTF-8"',
    ],
)
def test_a_boundary_may_be_quoted_and_its_name_in_capitals(content_type: str) -> None:
    assert "whisper" == read_form(form(field(b'"model"')), content_type).model


@pytest.mark.parametrize(
    "part",
    [
        field(b'"models"'),
        field(b'"language_model_name"'),
        field(b'"file"; filename="model"'),
        field(b'"file"; filename="name=model"'),
        field(b'"file"', field(b'"model"')),  # inside of a file
    ],
)
def test_what_is_not_the_field_model_is_not_taken_for_it(part: bytes) -> None:
    assert ("", "") == read_form(form(part), TYPE)[:2]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=xyz; boundary=xyz",
        "multipart/form-data; x=y; boundary=xyz",
        "multipart/form-data; boundary=x yz",
        "multipart/mixed; boundary=xyz",
    ],
)
def test_without_one_plain_boundary_nothing_is_read(content_type: str) -> None:
    read = read_form(form(field(b'"model"')), content_type)
    assert ("", True) == (read.model, "boundary" in read.doubt)


def test_two_models_are_refused() -> None:
    with pytest.raises(HttpError):
        read_form(form(field(b'"model"'), field(b'"x"'), field(b'"model"', b"")), TYPE)


def test_too_many_parts_are_refused() -> None:
    assert "" == read_form(form(*[field(b'"x"')] * MAX_PARTS), TYPE).doubt
    with pytest.raises(HttpError):
        read_form(form(*[field(b'"x"')] * (MAX_PARTS + 1)), TYPE)


@pytest.mark.parametrize("model", ["x", "a-much-longer-name/with\u00e4"])
def test_another_model_takes_its_place_and_nothing_else_changes(model: str) -> None:
    body = form(
        field(b'"file"; filename="a"', b"whisper\r\n\r\nwhisper"), field(b'"model"'), field(b'"x"', b"whisper")
    )
    renamed = with_model(body, TYPE, read_form(body, TYPE), model)
    assert (
        form(
            field(b'"file"; filename="a"', b"whisper\r\n\r\nwhisper"),
            field(b'"model"', model.encode()),
            field(b'"x"', b"whisper"),
        )
        == renamed
    )


def test_a_boundary_that_is_part_of_the_name_is_refused() -> None:
    body = form(field(b'"model"'))
    with pytest.raises(HttpError):
        with_model(body, TYPE, read_form(body, TYPE), "a--xyz")


PIECES = [
    b"--xyz",
    b"--",
    b"\r\n",
    b"\n",
    b" ",
    b";",
    b'"',
    b"\\",
    b"model",
    b"name=",
    b"name*=utf-8''",
    b"filename=",
]
PIECES += [b"form-data", b"Content-Disposition: ", b"Content-Type: text/plain", b"whisper", b"\0", b"\t"]
WHOLE = form(field(b'"file"; filename="a"', b"x"), field(b'"model"'), field(b'"x"', b"y"))


def named_by_email(body: bytes) -> list[str]:
    """What the parser for mails, which is lenient, takes for the model."""
    whole = BytesParser().parsebytes(b"Content-Type: " + TYPE.encode() + b"\r\n\r\n" + body)
    parts = whole.get_payload() if whole.is_multipart() else []
    models = []
    for part in parts:
        assert isinstance(part, Message)
        name = part.get_param("name", header="content-disposition")
        name = name[2] if isinstance(name, tuple) else name
        if name == "model":
            models.append(str(part.get_payload()).strip("\r\n"))
    return models


@given(st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), st.sampled_from(PIECES)), max_size=4))
def test_a_lenient_parser_reads_no_other_model_than_is_read_here(edits: list[tuple[int, int, bytes]]) -> None:
    body = WHOLE
    for at, length, piece in edits:
        body = body[:at] + piece + body[at + length :]
    with suppress(HttpError):
        read = read_form(body, TYPE)
        if (
            not read.doubt
            and read.model.strip() == read.model
            and "\n" not in read.model
            and "\r" not in read.model
        ):
            assert [read.model] * bool(read.end) == named_by_email(body)


@pytest.mark.parametrize(
    "unit", [b'; name="model"\r\n', b";name=model ", b"--xyz\r\n; name=model", b"\r\n", b"\r\n--xyz", b"-", b"xyz"]
)
def test_eight_megabytes_of_almost_a_form_take_no_longer_than_reading_them(unit: bytes) -> None:
    """A search that goes back and forth would take days here."""
    body = b"--xyz\r\n" + form(b"Content-Disposition: form-data" + unit * (8_000_000 // len(unit)))
    with suppress(HttpError):  # where those are too many parts
        assert "" == read_form(body, TYPE).model

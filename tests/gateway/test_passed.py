"""Which model a form names, read without trusting whoever made it."""

from contextlib import suppress

import pytest

from driftsched.gateway.errors import HttpError
from driftsched.gateway.passed import MAX_PARTS, model_of_form

TYPE = "multipart/form-data; boundary=xyz"


def form(*parts: bytes) -> bytes:
    return b"".join(b"--xyz\r\n" + part + b"\r\n" for part in parts) + b"--xyz--\r\n"


def field(name: bytes, value: bytes = b"whisper") -> bytes:
    return b"Content-Disposition: form-data; name=" + name + b"\r\n\r\n" + value


@pytest.mark.parametrize(
    "part",
    [
        field(b'"model"'),
        field(b"model"),
        field(b'"model"; x=y'),
        field(b"model ; x=y"),
        b"content-type: text/plain\r\ncontent-disposition: form-data; filename=f; name=model\r\n\r\nwhisper",
    ],
)
def test_the_field_model_is_found_however_it_is_written(part: bytes) -> None:
    assert "whisper" == model_of_form(form(field(b'"file"', b"\0" * 99), part), TYPE)


@pytest.mark.parametrize("content_type", [TYPE.replace("xyz", '"xyz"'), TYPE.upper().replace("XYZ", "xyz")])
def test_a_boundary_may_be_quoted_and_its_name_in_capitals(content_type: str) -> None:
    assert "whisper" == model_of_form(form(field(b'"model"')), content_type)


@pytest.mark.parametrize(
    "part",
    [
        field(b'"models"'),
        field(b'"x"; filename="model"'),
        field(b'"file"', field(b'"model"')),  # inside of a file
        b"X-A: ; name=model\r\n\r\nwhisper",
        b'Content-Disposition: form-data; name="model"',
    ],
)
def test_what_is_not_the_field_model_is_not_taken_for_it(part: bytes) -> None:
    assert "" == model_of_form(form(part), TYPE)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=", "audio/wav"])
def test_without_a_boundary_there_is_no_form(content_type: str) -> None:
    assert "" == model_of_form(form(field(b'"model"')), content_type)


def test_two_models_are_refused() -> None:
    with pytest.raises(HttpError):
        model_of_form(form(field(b"model"), field(b'"model"')), TYPE)


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(HttpError):
        model_of_form(form(*[field(b"x")] * (MAX_PARTS + 1)), TYPE)


@pytest.mark.parametrize(
    "unit", [b'; name="model"\r\n', b";name=model ", b"--xyz\r\n; name=model", b"\r\n", b"\r\n--xyz"]
)
def test_eight_megabytes_of_almost_a_form_take_no_longer_than_reading_them(unit: bytes) -> None:
    """A search that goes back and forth would take days here."""
    body = form(b"Content-Disposition: form-data" + unit * (8_000_000 // len(unit)))
    with suppress(HttpError):  # where those are too many parts
        assert "" == model_of_form(body, TYPE)

"""Which model a form names, read so that whoever reads the form after us reads the same.

Servers differ in what they make of an odd form: encoded and escaped names, lines that end in other ways, text
before and behind, boundaries said twice. So only forms as all common clients write them are read. Of any other it
is told what is odd about it; whether such a form may go on is for others to say.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from driftsched.gateway.errors import HttpError

FORM: Final = "multipart/form-data"

MAX_PARTS = 100
MAX_PART_HEAD_BYTES = 1024
"""What stands before the content of a part."""

_CHARSET = r'(?:;[ \t]*charset="?utf-?8"?[ \t]*)?'
_CONTENT_TYPE = re.compile(
    rf'{FORM}[ \t]*{_CHARSET};[ \t]*boundary=(?:"([\w.=+\'-]{{1,70}})"|([\w.=+\'-]{{1,70}}))[ \t]*{_CHARSET}',
    re.IGNORECASE | re.ASCII,
)
_LINE = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_DISPOSITION = re.compile(
    rb'form-data; ?name="([^"\\]*)"(; ?filename="[^"\\]*")?(; ?filename\*=[^\s;"\\]+)?', re.IGNORECASE
)
_PLAIN_TEXT = re.compile(rb'text/plain[ \t]*(?:;[ \t]*charset="?utf-?8"?[ \t]*)?', re.IGNORECASE)
_AS_IT_IS = (b"7bit", b"8bit", b"binary")  # transfer encodings that encode nothing


class Form(NamedTuple):
    """What was read of a form."""

    model: str = ""
    """The field `model`; empty if there is none, or in doubt."""
    doubt: str = ""
    """Why others might read another model; empty if nobody would."""
    start: int = 0
    end: int = 0
    """Where in the body the model stands."""


class _OddError(Exception):
    """Says what others might read in another way."""


def read_form(body: bytes, content_type: str) -> Form:
    """Read a form. Raises `HttpError` 400 if it names a model twice, or has more than `MAX_PARTS`.

    Time is linear in the body, whatever it holds: a search over all of it for a part's name is not.
    """
    try:
        return _read(body, _boundary(content_type))
    except _OddError as odd:
        return Form(doubt=str(odd))


def with_model(body: bytes, content_type: str, form: Form, model: str) -> bytes:
    """The body of `form`, which names a model, with another in it. Raises `HttpError` 400 if it then is no form."""
    renamed = body[: form.start] + model.encode() + body[form.end :]
    if read_form(renamed, content_type).model != model:  # whoever chose the boundary may have found it in a name
        raise HttpError(400, "The form cannot be passed on under the model's own name.", code="unclear_model")
    return renamed


def _boundary(content_type: str) -> bytes:
    found = _CONTENT_TYPE.fullmatch(content_type.strip())
    if found is None:
        raise _OddError("its content-type is not multipart/form-data with one plain boundary")
    return b"--" + (found[1] or found[2]).encode()


def _read(body: bytes, delimiter: bytes) -> Form:
    before, *parts = body.split(delimiter, MAX_PARTS + 2)
    if len(parts) > MAX_PARTS + 1:
        raise HttpError(400, f"The form has more than {MAX_PARTS} parts.", code="invalid_value")
    if before or not parts or parts[-1] not in (b"--", b"--\r\n"):
        raise _OddError("it does not begin with its boundary and end with it")
    found = Form()
    at = 0
    for part in parts[:-1]:
        at += len(delimiter)
        content = _content_of_model(part)
        if content is not None:
            if found.end:
                raise HttpError(400, "The form names a model more than once.", param="model", code="invalid_value")
            end = at + len(part) - 2
            found = Form(_text(content), start=end - len(content), end=end)
        at += len(part)
    return found


def _content_of_model(part: bytes) -> bytes | None:
    """What a part says if it is the field `model`."""
    head_end = part.find(b"\r\n\r\n", 0, MAX_PART_HEAD_BYTES)
    if head_end < 0 or not part.startswith(b"\r\n") or not part.endswith(b"\r\n", head_end + 4):
        raise _OddError("a part of it is not as it should be, or its head is long")
    lines = [_LINE.fullmatch(line) for line in part[2:head_end].split(b"\r\n")]
    heads = [(line[1].lower(), line[2].strip()) for line in lines if line is not None]
    head = dict(heads)
    if len(head) < len(lines):
        raise _OddError("the head of a part has lines that are odd, or there twice")
    disposition = _DISPOSITION.fullmatch(head.get(b"content-disposition", b""))
    if disposition is None:
        raise _OddError("the content-disposition of a part is not plain")
    if not _is_model(disposition[1]):
        return None
    if (
        disposition[2]
        or disposition[3]
        or not _PLAIN_TEXT.fullmatch(head.get(b"content-type", b"text/plain"))
        or head.get(b"content-transfer-encoding", b"8bit").lower() not in _AS_IT_IS
    ):
        raise _OddError("its model is a file, or encoded")
    return part[head_end + 4 : -2]


def _is_model(name: bytes) -> bool:
    """Whether a field is the model. `Model`, `model[]` and the like are for some, and for others are not."""
    if name == b"model":
        return True
    if bytes(letter for letter in unquote_to_bytes(name).lower() if 97 <= letter <= 122) == b"model":
        raise _OddError("a part has a name that some take for model")
    return False


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _OddError("its model is not UTF-8") from None

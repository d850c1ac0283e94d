"""A call as it came in, decoded once, and the model that it asks for.

Which model that is must be beyond doubt where it matters: where a tenant may not use all of them, and where it says
which pool is to answer. An engine may read a body in another way than we do. Where one could, the call is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from driftsched.gateway.answer import Headers
from driftsched.gateway.errors import HttpError
from driftsched.gateway.forms import FORM, Form, read_form, with_model
from driftsched.gateway.passed import JSON, PassedBody, decode_passed, is_json
from driftsched.gateway.wire import CHAT, COMPLETIONS, RESPONSES, Body, decode_body

GENERATING = (CHAT, COMPLETIONS, RESPONSES)

_UTF_8 = re.compile(rf'{JSON}[ \t]*(?:;[ \t]*charset="?utf-?8"?[ \t]*)?', re.IGNORECASE)


class _Name:
    """The name of a field. Each is an object of its own, so that a dict keeps those that are there twice."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_all_fields = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=lambda _, text: _Name(text)).decode


@dataclass(slots=True)
class Reading:
    """What a client sent to one of the paths that engines answer."""

    endpoint: str
    body: bytes
    content_type: str
    """Of the body, as the client says; JSON if it does not."""
    fields: Body | PassedBody
    form: Form | None = None
    """If it is one."""
    is_clear: bool = False
    """Nobody can take it for a call of another model than `fields` say."""

    @property
    def is_passed(self) -> bool:
        return isinstance(self.fields, PassedBody)

    def model(self, served: Sequence[str]) -> str:
        """The one model that anybody could take this to ask for, where `served` are there.

        Raises `HttpError` 400 if an engine might read another than we do, or if it is said nowhere and there are
        several.
        """
        if self.is_clear:
            return self.fields.model or ""
        doubt = self._doubt()
        if doubt:
            raise _unclear(doubt)
        in_path = {name for name in served if f"/{name}/" in self.endpoint} if self.is_passed else set()
        in_body = {self.fields.model} if self.fields.model else set()
        meant = in_path | in_body or set(served)
        if len(meant) == 1:
            self.is_clear = bool(in_body)
            return meant.pop()
        if in_body:
            raise _unclear("the path names another than the body")
        raise HttpError(400, "Name a model: several are served here.", param="model", code="missing_model")

    def under(self, model: str) -> "Reading":
        """The same, which names a model, asked of another: all else is left as it is. Raises `HttpError` 400."""
        fields = msgspec.structs.replace(self.fields, model=model)
        if self.form is not None:
            body = with_model(self.body, self.content_type, self.form, model)
        else:
            others = _decode_fields(self.body)
            others["model"] = msgspec.Raw(msgspec.json.encode(model))
            body = msgspec.json.encode(others)
        return Reading(self.endpoint, body, self.content_type, fields, is_clear=True)

    def _doubt(self) -> str:
        """Why an engine might read another model than we do; empty if none would."""
        if self.form is not None:
            return self.form.doubt
        if self.is_passed and not _UTF_8.fullmatch(self.content_type.strip()):
            return f"a body of the type {self.content_type[:100]!r} is not read here"
        names = [name.text for name in _decode_all_fields(self.body) if name.text.lower() == "model"]
        return "" if names in ([], ["model"]) else "the body names it twice, or in other letters"


def _unclear(why: str) -> HttpError:
    return HttpError(400, f"It is not clear which model is meant: {why}.", param="model", code="unclear_model")


def read(endpoint: str, body: bytes, headers: Headers) -> Reading:
    """Decode a call of one of the paths that engines answer. Raises `HttpError` 400."""
    if endpoint in GENERATING:
        return Reading(endpoint, body, JSON, decode_body(endpoint, body))
    content_type = headers.get(b"content-type", b"").decode("latin-1") or JSON
    if is_json(content_type):
        return Reading(endpoint, body, content_type, decode_passed(body))
    if content_type[: len(FORM)].lower() == FORM:
        form = read_form(body, content_type)
        return Reading(endpoint, body, content_type, PassedBody(form.model or None), form)
    return Reading(endpoint, body, content_type, PassedBody())

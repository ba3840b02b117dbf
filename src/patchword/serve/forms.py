"""Extracts the one file in a multipart/form-data body, in memory.

Its name is read only to distinguish a file from a field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from patchword.errors import counted
from patchword.serve.refusals import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MOST_PARTS = 16
_DO = "send one file as the field 'image' of multipart/form-data"


def file_of_form(content_type: str, body: bytes) -> bytes:
    """Returns the content of the only complete file of the form; other fields are ignored.

    Raises `Refusal` where there is none or more than one, or the form is malformed.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _malformed("its boundary is missing")
    form = _Form()
    try:
        # The boundary must end the body. Without it the last part is cut off, and the parser itself accepts
        # that.
        parser = MultipartParser(boundary, cast("MultipartCallbacks", form.callbacks()))
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not form.files:
        raise Refusal(422, "no_file", "the form holds no complete file", _DO)
    if len(form.files) > 1:
        raise Refusal(
            422, "many_files", f"the form holds {counted(len(form.files), 'file')}, expected one", _DO
        )
    return form.files[0]


def _malformed(said: str) -> Refusal:
    return Refusal(400, "malformed_multipart", f"the multipart body cannot be read: {said}", _DO)


class _Form:
    """Collects the parser's reports: spans of the body, part by part."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self._parts = 0

    def callbacks(self) -> dict:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._value,
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _malformed(f"it has more than {_MOST_PARTS} parts")
        self._name, self._said, self._is_file, self._content = b"", b"", False, bytearray()

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._said += data[start:end]

    def _header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._is_file = b"filename" in parse_options_header(self._said)[1]
        self._name, self._said = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._content += data[start:end]

    def _end(self) -> None:
        if self._is_file:
            self.files.append(bytes(self._content))

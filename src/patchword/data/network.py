"""A picture from an address, where a person allowed that: bounded in size and time, http and https only."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request

from patchword.errors import PictureError, PictureTooLarge
from patchword.version import version

SECONDS = 30.0
"""Time for a whole picture, redirections included."""
MOST_BYTES = 100 * 2**20
_CHUNK = 64 * 2**10


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Redirections stay on the web: urllib would follow one to ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201 - urllib's own
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it redirects to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, most_bytes: int = MOST_BYTES, seconds: float = SECONDS) -> bytes:
    """What an address holds.

    Raises:
        PictureTooLarge: more than `most_bytes`.
        PictureError: no answer, another one than 200, or not all of it within `seconds`.
    """
    ends = time.monotonic() + seconds
    request = urllib.request.Request(url, headers={"User-Agent": f"patchword/{version()}"})
    opener = urllib.request.build_opener(_WebOnly())
    content = bytearray()
    try:
        with opener.open(request, timeout=seconds) as answer:
            while chunk := answer.read1(_CHUNK):
                content += chunk
                if len(content) > most_bytes:
                    raise PictureTooLarge(
                        f"{url}: more than {most_bytes / 2**20:g} MiB; it was not read further."
                    )
                if time.monotonic() > ends:
                    raise TimeoutError
            if answer.length:
                raise PictureError(
                    f"{url}: the connection ended {answer.length:,} bytes too early. Try again."
                )
    except TimeoutError as reason:
        raise PictureError(
            f"{url}: it did not arrive within {seconds:g} seconds. Try again, or download it."
        ) from reason
    except urllib.error.HTTPError as reason:
        reason.close()  # the error is the answer, with its connection
        raise PictureError(f"{url}: the server answered {reason.code} {reason.reason}.") from reason
    except (OSError, ValueError, http.client.HTTPException) as reason:
        if isinstance(getattr(reason, "reason", None), TimeoutError):
            raise PictureError(f"{url}: no answer within {seconds:g} seconds.") from reason
        said = getattr(reason, "reason", None) or reason
        raise PictureError(f"{url}: it cannot be fetched: {said}.") from reason
    return bytes(content)

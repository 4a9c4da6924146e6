"""The templates of the board: every text is escaped, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from fasttune.analysis.page import HIDDEN
from fasttune.console import CONTROLS, _, language
from fasttune.web.guard import LANGUAGES

LONGEST_TEXT = 20_000  # characters of an answer that a page shows
HERE = Path(__file__).parent
UNSEEN = {**CONTROLS, **HIDDEN}  # what a page would obey, or turn the direction of writing by


@dataclass(frozen=True)
class Links:
    """Addresses within the board: each with the token, and with ?lang where one was chosen."""

    token: str
    lang: str
    path: str

    def __call__(self, path: str, **query: str) -> str:
        more = {"lang": self.lang} if self.lang else {}
        return f"{quote(path)}?{urlencode({**query, **more, 'token': self.token})}"

    def spoken(self, lang: str, query: Mapping[str, str]) -> str:
        """This page in another language."""
        rest = {key: value for key, value in query.items() if key not in ("lang", "token")}
        return f"{quote(self.path)}?{urlencode({**rest, 'lang': lang, 'token': self.token})}"


def shown(text: object) -> str:
    """A text as it is shown: what can't be seen is written out, and it is cut where it is endless."""
    whole = str(text)
    cut = whole[:LONGEST_TEXT].translate(UNSEEN)
    if len(whole) > LONGEST_TEXT:
        cut += "\n" + _("… {n:,} more characters", n=len(whole) - LONGEST_TEXT)
    return cut


def environment() -> jinja2.Environment:
    """The templates. A name that a page does not have is an error, not an empty text."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["shown"] = shown
    return made


TEMPLATES = environment()


def links(request: Request) -> Links:
    """The addresses for the page that answers a request."""
    chosen = request.query_params.get("lang", "")
    return Links(request.query_params["token"], chosen if chosen in LANGUAGES else "", request.url.path)


def page(request: Request, name: str, title: str, status: int = 200, **values: Any) -> HTMLResponse:
    """The answer to a request: a template with the frame that all pages have."""
    link = links(request)
    other = {"en": ("zh", "中文"), "zh": ("en", "English")}[language()]
    words = {
        "runs": _("Runs"), "train": _("Train"), "blind": _("Blind test"), "chat": _("Chat"),
        "skip": _("to the content"), "other": other[1],
    }  # fmt: skip
    frame = {
        "link": link, "lang": "zh-CN" if language() == "zh" else "en", "title": title, "words": words,
        "other_link": link.spoken(other[0], request.query_params), "other_lang": other[0], "at": request.url.path,
        "refresh": 0,
    }  # fmt: skip
    return HTMLResponse(TEMPLATES.get_template(name).render(frame | values), status)


def message(request: Request, title: str, text: str, status: int = 200, hint: str = "") -> HTMLResponse:
    """A page that says one thing."""
    return page(request, "message.html", title, status, text=text, hint=hint)

r"""Log lines as PostgreSQL, Spring and nats-server write them, with users and secrets planted: none may leave a run.

The templates are in tests/data/planted. A line that begins with ">>> " says what stands around the lines below it
(at …).
A mark says what is planted there and how it is written: «u» a user id and «s» a secret without a space, «k» a secret
known by its shape; «u:sql» within '...' of SQL, «u:py» within '...' of Python, «u:json» within "...", «u:json2» within
\"...\" of a JSON text, «u:text» where any text may stand, «u:url» in a URL. ⏎ begins a new line.

In named.txt, which has how languages write a name with its value, «v» is a value of NAME, and ␣ any blank.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import quote

from hypothesis import strategies as st

from tests.kit import ROOT

FOLDER = ROOT / "tests" / "data" / "planted"

#: User ids without a space, then those that only a quoted or bracketed place can hold.
BARE_USERS = ("quill-0071", "zoe.quill+x@mail.example", "auth0|quillzoe", "914773350118", "usr_Quilla",
              "5a0e9b1c-77d1-4c1e-9d3a-6b1f0c9e7a55")  # fmt: skip
USERS = (*BARE_USERS, "Zoe Quillfeather", "Zoe O'Quillan", "山田 珊瑚", 'Zed "Quillo" Feather', "quilly, zoe: esq")
BARE_SECRETS = ("hunter2-Kx9", "P@ss-Wordy9!", "Zm9vYmFyQmF6==", "x7$Gk#Lm%Q2", "S3cr3t/With+Slash", "kiwi;plum,fig9")
SECRETS = (*BARE_SECRETS, "correct horsey battery", "it's-a-9xRex", 'quo"te-9xTee')
#: Put together here, so that no scanner takes them for real ones.
SHAPED = (
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiJxdWlsbCJ9.c2lnbmF0dXJlLXBsYW50ZWQ",
    "SU" + "AMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY",
    "AK" + "IAQUILL7PLANTED99X",
    "SCRAM-SHA-256" + "$4096:cGxhbnRlZHNhbHQ=$c3RvcmVka2V5cGxhbnRlZA==:c2VydmVya2V5cGxhbnRlZA==",
    "md5" + "a3556571e93b0d20722ba62be61e8c2d",
    "xox" + "b-123456789012-planted9Token",
    "gh" + "p_Planted9Planted9Planted9Planted9Plant",
    "github" + "_pat_11PLANTED0Planted9Planted_Planted9Planted9Planted9",
    "xap" + "p-1-A0PLANTED9-1234567890123-planted9planted9",
    "xox" + "e.xoxp-1-Planted9Planted9Planted9",
    "gl" + "pat-Planted9Planted9Plan",
    "sk" + "_live_Planted9Planted9Planted9",
    "np" + "m_Planted9Planted9Planted9Planted9Plan",
    "py" + "pi-AgEIcHlwaS5vcmcCPlanted9Planted9",
    "MTAx" + "MjM0NTY3ODkwMTIz.Gplant.ed9Planted9Planted9Planted9Plan",
    "6012345678:A" + "APlanted9Planted9Planted9Planted9P",
)
#: Values that stand in the templates themselves.
_FIXED = (
    "914773350118",
    "zoe.quill+x@mail.example",
    "p@ss-Worry9",
    "Planted9",
    "Quillsecond",
    "quill-0072",
    "UXVpbGw6UGxhbnRlZDk=",
)
#: Words of the values above that a line may hold for another reason.
_COMMON = {"mail", "example", "SCRAM", "4096", "With"}

_OF = {"u": (BARE_USERS, USERS), "s": (BARE_SECRETS, SECRETS), "k": (SHAPED, SHAPED)}
_MARK = re.compile(r"«([uskv])(?::(\w+))?»")


def _written(value: str, how: str | None) -> str:
    match how:
        case "sql":
            return value.replace("'", "''")
        case "py":
            return value.replace("'", "\\'")
        case "json":
            return json.dumps(value, ensure_ascii=False)[1:-1]
        case "json2":
            return _written(_written(value, "json"), "json")
        case "url":
            return quote(value, safe="")
        case "html":
            return html.escape(value)
        case "shell":
            return value.replace("'", "'\\''")
    return value


@dataclass(frozen=True)
class Line:
    """A line of a log and the values planted in it."""

    text: str
    planted: tuple[str, ...]

    def left(self, masked: str) -> set[str]:
        """What of the planted values is still in a text."""
        return {part for value in self.planted for part in parts(value) if part in masked}


def parts(value: str) -> set[str]:
    """A value as it may be written, and its words of four letters or more."""
    words = re.findall(r"\w{4,}|[^\x00-\x7f]{2,}", value)
    return {_written(value, how) for how in (None, "sql", "json", "url")} | {*words} - _COMMON


def templates(name: str) -> Iterator[str]:
    """The templates of a file of tests/data/planted."""
    around = "…"
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(">>> "):
            around = line.removeprefix(">>> ")
        else:
            yield around.replace("…", line.replace("⏎", "\n"))


def lines(each: int = 4) -> Iterator[Line]:
    """Every template with `each` different values."""
    values = {(kind, encoded): cycle(pair[encoded]) for kind, pair in _OF.items() for encoded in (False, True)}
    for template in (t for name in ("postgres", "spring", "nats") for t in templates(name)):
        for _ in range(each if _MARK.search(template) else 1):
            planted, text = [], template
            while mark := _MARK.search(text):
                planted.append(next(values[mark[1], mark[2] is not None]))
                text = text[: mark.start()] + _written(planted[-1], mark[2]) + text[mark.end() :]
            yield Line(text, (*planted, *(v for v in _FIXED if v in text)))


#: Names of secrets and of people, and blanks.
SECRET_NAMES = ("password", "db_password", "DB_PASS", "dbPassword", "app.password", "client-secret", "pw", "apiKey",
                "access_token", "AccountKey", "private_key", "X-Api-Key", "パスワード", "refreshToken")  # fmt: skip
PERSON_NAMES = ("user_id", "userId", "USER_ID", "user id", "n.user_id", "X-User-Id", "aggregate_key", "ユーザーID")
BLANKS = ("", " ", "\t", "\u00a0", "\u2009", "\u200b", "\u202f", "\u3000")
_WORDS = st.text("abcdefghijkmnpqrstuvwxyzABCXYZ23456789-_.", min_size=4, max_size=12).map("Zq{}x7".format)
_TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp"), exclude_characters=":`'"), max_size=12
).map("Zq4{}x7z".format)


@st.composite
def named(draw: st.DrawFn, form: str) -> tuple[bool, Line]:
    """Whether a form of named.txt has a secret, and its line with a name, values and blanks."""
    secret = draw(st.booleans())
    names: tuple[str, ...] = SECRET_NAMES if secret else PERSON_NAMES
    bare, quoted = (BARE_SECRETS, SECRETS) if secret else (BARE_USERS, USERS)
    if "NAMEs" in form or "?" in form:
        names = tuple(name for name in names if name.isascii() and " " not in name and name != "DB_PASS")
    planted = list[str]()

    def value(mark: re.Match[str]) -> str:
        planted.append(draw(st.sampled_from(quoted) | _TEXTS if mark[2] else st.sampled_from(bare) | _WORDS))
        return _written(planted[-1], mark[2])

    text = _MARK.sub(value, form.replace("NAME", draw(st.sampled_from(names))))
    return secret, Line(re.sub("␣", lambda _: draw(st.sampled_from(BLANKS)), text), tuple(planted))


#: What a responder has to read as it is written.
KEPT = tuple(templates("kept"))

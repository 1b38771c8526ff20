r"""Find secrets and user ids in free text: log lines of PostgreSQL, Java and nats-server, SQL, JSON, URLs. Pure.

A secret becomes `***`, a user id what the caller makes of it, and a value that may be either `...`. What is recognised
is tested by tests/kit/corpus.py. A library for secrets (detect-secrets 1.5) was measured on those lines and left out:
without its entropy detectors 248 of 292 secrets stay, with them every line that must be kept is flagged, and it knows
no user ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote

#: Turns a user id into its token.
Person = Callable[[str], str]

SECRET = "***"  # noqa: S105 - what stands in its place
_HIDDEN = "..."

#: Characters of a line that the patterns see. They take time in proportion to a line's length; what is beyond is cut.
LONGEST = 100_000
_CUT = " ... (cut)"
#: A word of at most so many characters is cut as a whole: half of a secret may have no form that is known.
_LONGEST_WORD = 1000


def cut(text: str, most: int = LONGEST) -> str:
    """Return the text, or its first words with a mark if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    end = most - len(_CUT)
    space = max(text.rfind(blank, max(end - _LONGEST_WORD, 0), end + 1) for blank in " \n")
    return text[: end if space < 0 else space] + _CUT


def _cut_lines(text: str) -> str:
    return text if len(text) <= LONGEST else "\n".join(map(cut, text.split("\n")))


# Values ------------------------------------------------------------------------------------------------------

# Quoted, also as JSON within JSON (\"...\") and as some JSON writers escape ' (\u0027); a line may be cut off within.
# Each level of JSON within JSON doubles the backslashes.
_QUOTE = r"(?:\\*(?:[\"']|u002[27])|%2[27])"
_QUOTED = (
    r"(?:\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.|'')*'?"
    r"|(?P<q%s>(?<!\\)\\{1,63}+(?:[\"']|u002[27]))(?:(?!(?<!\\)(?P=q%s))[^\n])*(?:(?P=q%s))?)"
)
_OPENING = re.compile(rf"\A{_QUOTE}")
# Words that follow a key in prose: "userId: must not be blank".
_PROSE_WORDS = (
    "must|is|are|was|not|has|cannot|can|should|may|required|missing|null|none|nil|undefined|unknown|invalid|rejected|expired"
    "|empty|blank|and|or|for|in|of|to|from|at|with|by|as|on|field|column|parameter|header|value|the|does|did|will|when"
    "|未設定|なし|無し|あり|不明|空"
)
_PROSE = rf"(?!(?:{_PROSE_WORDS})(?:[\s,;.)\]}}\"'\\&、。]|$))"
#: Blanks, and what stands between a key and its value; the full-width ones are those of a Japanese input method.
_BLANK = r"[ \t\u3000]*"
_COLON = r"(?:[:=：＝]|%3D|%3A)"
# Punctuation belongs to a value without quotes if the value goes on behind it.
_UNQUOTED = (
    r"(?![{\[(<])(?:[^\s&,;)\]}\"'\\]|&(?![\w.-]+=)|[,;](?![\s\"']|[\w.-]+[=:]|$)|[)\]}\"'](?=\w)"
    r"|\\(?![nrtu\"'\\]))+"
)
_BARE_PERSON = r"[^\s,;()\[\]{}\"'&<>\\、。，；（）「」]+"
# {"name": "password", "value": ...}, b'...' of Python, E'...' and U&'...' of SQL; in a URL a quote is percent-encoded.
_VALUE = rf",[ \t]*{_QUOTE}value{_QUOTE}[ \t]*:"
_PREFIX = r"(?:(?:[benrux]|u&)(?=[\"'])|%2[27])?"


def _quoted_pattern(name: str) -> str:
    return _QUOTED % (name, name, name)


def _replace_within_quotes(value: str, replace: Callable[[str], str]) -> str:
    """Replace what is between the quotes of a value, if it has any; it is given without its escapes."""
    opening = found[0] if (found := _OPENING.match(value)) else ""
    inner = value[len(opening) :]
    closed = bool(opening) and inner.endswith(opening)
    inner = inner.removesuffix(opening) if closed else inner
    return opening + replace(_remove_escapes(inner, opening)) + (opening if closed else "")


def _remove_escapes(inner: str, opening: str) -> str:
    if opening == "'":
        return inner.replace("''", "'").replace("\\'", "'")
    if opening:
        for _ in range(opening.count("\\").bit_length() + 1):
            try:
                inner = str(json.loads(f'"{inner}"'))
            except ValueError:
                break
    return inner


# Secrets -----------------------------------------------------------------------------------------------------

_SPACE = r"(?:[ +]|%20)"  # in a URL it is written otherwise
_PEM = re.compile(
    rf"-----BEGIN(?:{_SPACE}|[A-Z])*(?:PRIVATE{_SPACE}KEY(?:{_SPACE}BLOCK)?|SEED|JWT)-----"
    rf".*?(?:-END(?:{_SPACE}|[A-Z])*-+|\Z)",
    re.DOTALL,
)
_NATS_SEED = re.compile(r"\bS[UAONCX][A-Z2-7]{56}\b")
_URL_PASSWORD = re.compile(
    r"(?P<head>(?<![\w+.-])[a-z][a-z0-9+.-]*+://[^\s:/@\"'<>]*):(?=[^\s\"'<>]{1,1000}@)"
    r"(?:(?:(?!,\w+://)[^\s/\"'<>]){1,1000}|(?!\d+(?:[/?,#\s\"']|$))(?:(?!,\w+://)[^\s\"'<>]){1,1000})@",
    re.IGNORECASE,
)
_URL_TOKEN = re.compile(r"(?P<head>\b(?:nats|tls|wss?|nats-\w+)://)[^\s:/@\"'<>]+@", re.IGNORECASE)  # a user alone
# The same within another URL's query.
_ENCODED_PASSWORD = re.compile(
    r"(?P<head>%3A%2F%2F[^\s:/@\"'<>&%]*%3A)(?:(?!%2F|%40)[^\s\"'<>&]){1,1000}%40", re.IGNORECASE
)
#: How the tokens of Slack, GitHub, GitLab, Grafana, npm, PyPI, Stripe, Google, Vault, Docker and others begin.
_ISSUERS = (
    *("xox", "xapp-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "npm_", "pypi-", "dckr_pat_", "dckr_oat_"),
    *("glpat-", "gloas-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-", "glsa_"),
    *("glc_", "sk_live_", "sk_test_", "rk_live_", "rk_test_", "whsec_", "sk-", "AIza", "GOCSPX-", "ya29.", "SG."),
    *("hvs.", "hvb.", "AGE-SECRET-KEY-", "dop_v1_", "doo_v1_", "dor_v1_", "hf_", "NRAK-", "lin_api_", "shpat_"),
)
# What is known by its own shape: those, JWT, password hashes, keys of AWS, webhooks, headers' values.
_SHAPES = re.compile(
    rf"""
    (?<![\w-])(?=[\w-]++\.[\w.+/=-])(?P<before>(?:[\w-]*?-)??)eyJ[\w-]{{5,}}+\.[\w.+/=-]+  # a JWT
    | \bSCRAM-SHA-256\$\d+:[^\s"',;]+ | \bmd5[0-9a-f]{{32}}\b            # a password, as PostgreSQL keeps it
    | \$2[abxy]\$\d\d\$[./\w]{{20,}}                                     # bcrypt, as nats-server does
    | \bA(?:KIA|SIA|BIA|CCA)[A-Z0-9]{{16}}\b
    | \b(?:{"|".join(map(re.escape, _ISSUERS))})(?=[\w.-]{{0,60}}\d)[\w.-]{{10,}}
    | (?<=hooks\.slack\.com/services/)[^\s"'<>]+
    | (?<=\bBasic[ ])(?=\S*[\d=])[\w+/=]{{8,}} | (?<=\bBearer[ ])(?=\S*[\d=_.])[\w.~+/=-]{{8,}}
    """,
    re.VERBOSE,
)
_SHAPE_WORDS = ("eyJ", "SCRAM-", "md5", "$2", "AKIA", "ASIA", "ABIA", "ACCA", "slack", "Bearer", "Basic", *_ISSUERS)
_HEADER = re.compile(
    rf"""
    (?P<head>(?P<before>["'])?\b(?:authorization|cookie)(?:
        (?:{_QUOTE})?{_BLANK}(?:{_COLON}|{_VALUE}){_BLANK}\[?{_PREFIX}
        | {_QUOTE}[ \t]*,[ \t]*{_PREFIX}(?={_QUOTE}[^"'\n]*[ =\d])     # ('Authorization', 'Token x')
    ))
    (?:
        (?P<quoted>{_quoted_pattern("1")})
        | (?(before)(?:(?!(?P=before))[^\n\\]|\\.)+     # all of a quoted header
        | (?:
            Digest\b(?:[^"\n\\]|\\.|(?<==)"[^"\n]*")*
            | (?![{{\[])(?:(?!,\s+[\w-]+[=:])[^"\n\\\]}})]|\\["\\])+     # up to the next header of a map
        ))
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SECRET_WORDS = (
    *("pass", "pwd", "secret", "token", "credential", "jwt", "key", "sig", "session"),
    *("パス", "トークン", "秘密鍵", "シークレット"),
)
_CREDENTIAL = (
    r"(?:password|passwd|passphrase|pwd|secret|token|credential|(?<![a-z])pass|(?-i:Pass)(?![a-z])|(?<![a-z])jwt|jsessionid"
    r"|(?:api|access|private|secret|signing|encryption)[_.-]?key|パスワード|パスフレーズ|トークン|秘密鍵|シークレット)"
    r"(?:s|[_.-]?(?:hash|value|id))?"
)
_KEYED_SECRET = re.compile(
    rf"""
    (?P<head>(?:{_CREDENTIAL}|(?<=["'?&])sig)(?P<close>{_QUOTE})?
        {_BLANK}(?:[=-]?>|={{1,2}}|[:：＝]|%3[DA]|\.{{3,}}|{_VALUE}){_BLANK}{_PREFIX})
    (?:(?P<quoted>{_quoted_pattern("1")})|(?P<list>\[[^\]\n]*\]?)|{_PROSE}(?P<bare>{_UNQUOTED}))
    """,
    re.IGNORECASE | re.VERBOSE,
)
# PASSWORD 'x', token "x"; but secret "x" names an object of Kubernetes. And options of a command.
_NAMED_SECRET = re.compile(
    rf"""
    (?P<head>(?:password|passphrase|token|api[ ]key)[ \t]+)(?P<quoted>{_quoted_pattern("1")})
    | (?P<option>(?<![\w-])(?=[\w-]*--)[\w-]*{_CREDENTIAL}[ \t]+(?!-)|(?<!\S)(?:-u|--user)[ =][^\s:]+:)
      (?:{_quoted_pattern("2")}|{_UNQUOTED})
    """,
    re.IGNORECASE | re.VERBOSE,
)


# The value of a name that stands beside it, before it, or on the next line: YAML, JSON, XML.
_NAME = rf"[\"']?\bname[\"']?[ \t]*[:=][ \t]*[\"']?(?=[\w.-]*{_CREDENTIAL})[\w.-]++[\"']?"
_VALUE_OF = r"[\"']?\bvalue[\"']?[ \t]*[:=][ \t]*"
_VALUE_FOLLOWS = re.compile(r"value[\"']?[ \t]*[:=]")
_NAMED_VALUE = re.compile(
    rf"""
    (?P<head>{_NAME},?\s+{_VALUE_OF})(?:(?P<quoted>{_quoted_pattern("1")})|[^\s"'][^\n]*)
    | (?P<before>{_VALUE_OF})(?P<first>{_quoted_pattern("2")})(?=,\s*{_NAME})
    """,
    re.IGNORECASE | re.VERBOSE,
)
# password: | and its lines, which stand further in.
_BLOCK_SCALAR = re.compile(
    rf"^(?P<in>[ \t]*+)(?P<key>[^\n]*{_CREDENTIAL}[\"']?[ \t]*:[ \t]*[|>][+-]?[ \t]*\n)"
    r"(?:(?P=in)[ \t]+[^\n]*(?:\n|\Z))+",
    re.IGNORECASE | re.MULTILINE,
)


def redact_blocks(text: str) -> str:
    """Take out the secrets that a line alone does not show."""
    if "-----BEGIN" in text:
        text = _PEM.sub(SECRET, text)
    lower = text.lower()
    if "name" in lower and _VALUE_FOLLOWS.search(lower):
        text = _NAMED_VALUE.sub(_replace_named_value, text)
    if _contains_any(lower, "|\n", ">\n", "|-\n", ">-\n"):
        text = _BLOCK_SCALAR.sub(rf"\g<in>\g<key>\g<in>  {SECRET}\n", text)
    return text


def _replace_named_value(found: re.Match[str]) -> str:
    quoted = found["quoted"] or found["first"]
    return (found["head"] or found["before"]) + (_replace_within_quotes(quoted, lambda _: SECRET) if quoted else SECRET)


def redact_secrets(text: str) -> str:
    """Take secrets out of a text; once more changes nothing."""
    return "\n".join(
        _redact_secrets_of_line(line, line.lower()) for line in redact_blocks(_cut_lines(text)).split("\n")
    )


def _redact_secrets_of_line(line: str, lower: str) -> str:
    """Take secrets out of a line; `lower`, the line in lower case, tells which patterns to try."""
    if "://" in line and "@" in line:
        line = _URL_TOKEN.sub(rf"\g<head>{SECRET}@", _URL_PASSWORD.sub(rf"\g<head>:{SECRET}@", line))
    line = _NATS_SEED.sub(SECRET, line)
    if "%3a%2f%2f" in lower:
        line = _ENCODED_PASSWORD.sub(rf"\g<head>{SECRET}%40", line)
    if _contains_any(line, *_SHAPE_WORDS):
        line = _SHAPES.sub(rf"\g<before>{SECRET}", line)
    if _contains_any(lower, "authorization", "cookie"):
        line = _HEADER.sub(lambda m: m["head"] + _replace_within_quotes(m["quoted"] or "", lambda _: SECRET), line)
    if _contains_any(lower, *_SECRET_WORDS, "-u"):
        line = _NAMED_SECRET.sub(_replace_named_secret, _KEYED_SECRET.sub(_replace_keyed_secret, line))
    return line


def _contains_any(line: str, *words: str) -> bool:
    return any(word in line for word in words)


def _replace_keyed_secret(found: re.Match[str]) -> str:
    if found["quoted"]:
        return found["head"] + _replace_within_quotes(found["quoted"], lambda inner: SECRET if inner else "")
    quote = _quote_of(found["close"])
    return found["head"] + (f"[{quote}{SECRET}{quote}]" if found["list"] else f"{quote}{SECRET}{quote}")


def _quote_of(close: str | None) -> str:
    """Return the quote of a key: a number in JSON becomes a text, so that the line stays what it was."""
    return "" if not close or close.endswith(")") or close.startswith("%") else close


def _replace_named_secret(found: re.Match[str]) -> str:
    return (
        found["option"] + SECRET
        if found["option"]
        else found["head"] + _replace_within_quotes(found["quoted"], lambda _: SECRET)
    )


# People ------------------------------------------------------------------------------------------------------

_PERSON_KEY = r"(?:user[_. -]?ids?|aggregate[_. -]?(?:key|id)|ユーザー?[_ -]?(?:ID|ＩＤ))"
_OPERATOR = (
    r"(?:=>|==?|\\+u003d|[:：＝]|%3[DA]|<>|!=|[<>]=?|!?~\*?|\b(?:not[ \t]+)?(?:i?like|in|between)\b"
    r"|\bis[ \t]+(?:not[ \t]+)?distinct[ \t]+from\b"
    rf"|{_VALUE}|,(?=[ \t]*'[^']))"  # the second one is starts_with(user_id, ...)
)
_KEYED_PERSON = re.compile(
    rf"""
    (?P<head>
        (?P<key>{_PERSON_KEY})(?![\w-])(?P<close>{_QUOTE}|\)|,[ \t]*'[^'\n]*'\))?(?:::\w+)?
        (?:{_BLANK}{_OPERATOR}{_BLANK}{_PREFIX}|[ \t]+(?=['"\[]|(?<=(?-i:erI)d[ ])|(?<=for[ ]user_id[ ])))
    )
    (?:
        (?P<quoted>{_quoted_pattern("1")}(?:[ \t]+and[ \t]+{_quoted_pattern("2")})?)
        | (?P<list>(?:(?:any|all|some|array|cast|lower|upper)[ \t]*+(?:\([ \t]*+)?){{0,2}}
            [(\[](?:{_quoted_pattern("3")}|[^()\[\]\n"'\\])*)
        | (?![:$?*@]|%(?![0-9A-F]{{2}}))(?!(?:\w+\.)*user_?id\b)(?!\w+\()  # no parameter, column or function
          {_PROSE}(?P<bare>{_BARE_PERSON})
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# As Java writes objects and maps: X(userId=Jane Doe, n=1).
_FIELD = re.compile(
    rf"(?P<head>(?:(?<=[(\[{{])|(?<=, ))(?:(?P<person>{_PERSON_KEY})|{_CREDENTIAL})=)"
    rf"{_PROSE}(?P<value>[^\s,=()\[\]{{}}\"'][^,=()\[\]{{}}\n]*)(?=, [\w.]+=|[)\]}}])",
    re.IGNORECASE,
)
_COLUMN = re.compile(r"\A\w+\.\w+")
_QUOTED_ONE = re.compile(_quoted_pattern("1"))
_ITEM = re.compile(rf"{_quoted_pattern('1')}|(?<=[\[,\s])[^\s,()\[\]\"'\\]+")
_LITERAL_FIRST = re.compile(
    rf"(?P<quoted>(?<!')'(?:[^'\n]|'')*+')(?P<rest> ?= ?(?:\w+\.)?{_PERSON_KEY}\b)", re.IGNORECASE
)
# PostgreSQL: "Key (columns)=(values)".
_KEY_DETAIL = re.compile(
    r"\((?P<columns>[^()=\n]*(?:\([^()\n]*\)[^()=\n]*)*)\)(?P<is> ?= ?)"
    r"\((?P<values>(?:[^)\n]|\)(?!\.|\"|\\| (?:already|is |conflicts|with)|$))*+)"
)
_PATH = re.compile(r"(?<=/users/|/inbox/)[^/\s?#\"',;<>{}\\]+")
#: A mail address, as it is or percent-encoded, in any script; a user in a URL ("//app@db") is none.
MAIL = (
    r"(?<![\w.+@＠-])(?<!//)(?!(?<=%)2B)[\w.+-]++(?:%2B[\w.+-]++)*+(?:[@＠]|%(?:25)?40)(?:[\w-]+\.)+"
    r"(?:xn--[\w-]+|[A-Za-z]{2,}(?![A-Za-z0-9_])|[^\W\d_A-Za-z]{2,})"
)
_MAIL = re.compile(MAIL)
# Input that a program repeats in its errors: it may belong to any user.
_ECHOED = re.compile(
    rf"""
    (?P<head>
        invalid[ ]input[ ](?:syntax|value)[ ]for[ ][^:"\n]{{0,100}}:[ ] | \bvalue[ ](?=\\*") | for[ ]input[ ]string:[ ]
        | invalid[ ]port[ ] | out[ ]of[ ]range:[ ] | \$\d+[ ]=[ ]
    )(?P<quoted>{_quoted_pattern("1")})
    | (?P<list>(?:(?:rejected|parameter)[ ]value | binding[ ]parameter[ ][^\n]{{1,60}}?(?:<-|-))[ ]\[)
      (?:[^\]\n]|\](?![;,\s"\\]|$))*+\]?
    | (?P<rest>
        (?: failing[ ]row[ ]contains | msg_payload: | invalid[ ]uuid[ ]string:
          | copy[ ]\S+,[ ]line[ ]\d+(?:,[ ]column[ ]\w+)?: )[ ]
    )(?P<all>[^\n]*)
    """,
    re.IGNORECASE | re.VERBOSE,
)


#: A runner may have put the time before it.
_JSON_LINE = re.compile(r"\A(?:\S+ )?\{\"")
_UNESCAPED_QUOTE = re.compile(r'(?<!\\)"')
#: An id or a word alone, as most cells of a frame are: nothing to look for.
_PLAIN = re.compile(r"\A(?:[0-9a-f-]{0,36}|[A-Za-z_]{0,18})")


def redact(text: str, person: Person) -> str:
    """Take secrets and user ids out of a text; SQL in it is redacted as `redact_sql` does."""
    if _PLAIN.fullmatch(text):
        return text
    return "\n".join(
        _redact_entry(entry, person) for entry in _split_entries(redact_blocks(_cut_lines(text)).split("\n"))
    )


def _split_entries(lines: list[str]) -> Iterator[str]:
    """Yield the lines; lines that continue a statement, which PostgreSQL begins with a tab, stay with it."""
    statement: list[str] = []
    for line in lines:
        if statement and not line.startswith("\t"):
            yield "\n".join(statement)
            statement = []
        if statement or (_contains_any(line.lower(), *_STATEMENT_WORDS) and _STATEMENT.search(line)):
            statement.append(line)
        else:
            yield line
    if statement:
        yield "\n".join(statement)


def _redact_entry(entry: str, person: Person) -> str:
    shown, at = [], 0
    in_json = bool(_JSON_LINE.match(entry))
    maybe_sql = _contains_any(entry.lower(), *_STATEMENT_WORDS)
    while maybe_sql and (found := _STATEMENT.search(entry, at)):
        begin, end = found.end(), _end_of_statement(entry, found, in_json=in_json)
        sql = redact_sql(entry[begin:end], person)
        shown += [
            _redact_words(entry[at:begin], person, in_json=in_json),
            _redact_words(sql, person, in_sql=True, in_json=in_json),
        ]
        at = end  # what an error says may stand behind its statement
    return "".join([*shown, _redact_words(entry[at:], person, in_json=in_json)])


def _redact_words(line: str, person: Person, *, in_json: bool, in_sql: bool = False) -> str:
    """Redact what its words tell of; in SQL a value like l.owner is a column."""
    lower = line.lower()
    if "=" in line:
        line = _FIELD.sub(lambda m: m["head"] + (_replace_field(m, person) if m["person"] else SECRET), line)
    line = _redact_secrets_of_line(line, lower)
    if _contains_any(lower, "input", "value", "invalid", "range: ", "$", "parameter", "failing", "payload", "copy "):
        line = _ECHOED.sub(lambda m: _replace_echoed(m, in_json=in_json), line)
    if _contains_any(lower, "user", "aggregate", "ユーザ"):
        if _contains_any(line, ")=(", ") = ("):
            line = _KEY_DETAIL.sub(lambda m: _replace_key_detail(m, person), line)
        line = _KEYED_PERSON.sub(
            lambda m: m[0] if in_sql and _COLUMN.fullmatch(m["bare"] or "") else _replace_keyed_person(m, person), line
        )
        if _contains_any(line, "'=", "' ="):
            line = _LITERAL_FIRST.sub(lambda m: _replace_within_quotes(m["quoted"], person) + m["rest"], line)
    if _contains_any(lower, "/users/", "/inbox/"):
        line = _PATH.sub(lambda m: person(unquote(m[0])), line)
    if _contains_any(line, "@", "＠", "%40", "%2540"):
        line = _MAIL.sub(lambda m: person(unquote(unquote(m[0]))), line)
    return line


def _replace_field(found: re.Match[str], person: Person) -> str:
    return key_token(found["person"], found["value"], person)


def _replace_keyed_person(found: re.Match[str], person: Person) -> str:
    def token(value: str) -> str:
        return key_token(found["key"], value, person)

    head = found["head"]
    if found["quoted"]:
        return head + _QUOTED_ONE.sub(lambda m: _replace_within_quotes(m[0], token), found["quoted"])
    if found["list"]:  # in (...) a word may be a column or a parameter
        bare = found["list"].startswith("[")
        return head + _ITEM.sub(
            lambda m: _replace_within_quotes(m[0], token) if bare or _OPENING.match(m[0]) else m[0], found["list"]
        )
    quote = _quote_of(found["close"])
    user = found["bare"].rstrip(".:!?")
    return f"{head}{quote}{token(unquote(user))}{quote}{found['bare'][len(user) :]}"


def key_token(key: str, value: str, person: Person) -> str:
    """Put the token in the place of a user id, in a pattern for one or in an aggregate key, "<user id>:<item>", too."""
    user = value.strip("%^$")
    if key.lower().startswith("aggregate"):
        user = user.rpartition(":")[0] or user
    return value.replace(user, person(user), 1) if user else value


def _replace_echoed(found: re.Match[str], *, in_json: bool) -> str:
    if found["head"]:
        return found["head"] + _replace_within_quotes(found["quoted"], lambda _: _HIDDEN)
    if found["list"]:
        return f"{found['list']}{_HIDDEN}]"
    return found["rest"] + _HIDDEN + found["all"][_end_of_text(found["all"], 0, quoted=in_json) :]


def _end_of_text(text: str, at: int, *, quoted: bool) -> int:
    """Return the end of a text that begins there: the next quote if it is quoted, else the end of all."""
    quote = _UNESCAPED_QUOTE.search(text, at) if quoted else None
    return quote.start() if quote else len(text)


def _replace_key_detail(found: re.Match[str], person: Person) -> str:
    """Replace the values of columns that name a person, or all values if the columns cannot be matched."""
    columns = found["columns"].split(", ")
    people = [re.search(_PERSON_KEY, column, re.IGNORECASE) for column in columns]
    if not any(people):
        return found[0]
    values = [found["values"]] if len(columns) == 1 else found["values"].split(", ")
    if len(values) != len(columns):
        shown = [_HIDDEN]
    else:
        shown = [key_token(p[0], v, person) if p else v for p, v in zip(people, values, strict=True)]
    return f"({found['columns']}){found['is']}({', '.join(shown)}"


# SQL ---------------------------------------------------------------------------------------------------------

_STATEMENT_WORDS = (
    *("statement", "query", "execute", "parse", "bind", "sql [", "batch entry"),
    *("select", "insert", "delete", "update", "merge", "with ", "where", "values", "alter", "create"),
)
# Where a statement begins in a line: behind what announces one, or with words that only a statement has.
_STATEMENT = re.compile(
    r"""
    (?:
        \b(?:statement|query|execute[ ]\S+|parse[ ]\S+|bind[ ]\S+):[ \t]+ | \bSQL[ ]\[ | \bBatch[ ]entry[ ]\d+[ \t]+
        | (?:^|[:\["(][ \t]*)(?=(?:explain[ \t]+)?(?:
            select\b[^\n]{1,2000}?\bfrom\b | insert[ \t]+into\b | delete[ \t]+from\b | merge[ \t]+into\b
            | update[ \t]+[\w."]+(?:[ \t]+(?:as[ \t]+)?\w+)?[ \t]+set\b | with[ \t]+\w+[ \t]+as[ \t]*\(
            | where\b[^\n=<>~(]{0,2000}+[=<>~(] | values[ \t]*\(
            | (?:alter|create)[ \t]+(?:role|user|database|system|subscription|server)\b
        ))
    )(?=\S)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LEXEME = re.compile(
    r"(?P<comment>--[^\n]*|/\*.*?(?:\*/|$))|(?P<name>\"(?:[^\"]|\"\")*\"?)"
    r"|(?P<literal>\b[eE]'(?:[^'\\]|\\.|'')*(?:'|$)|(?:\b[nNbBxX]|\b[uU]&)?'(?:[^']|'')*(?:'|$)"
    r"|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|$))",
    re.DOTALL,
)
# In the text that is left each literal is its number between these.
_MARK, _MARKED = "\0", r"'\0(\d+)\0'"
_SQL_PERSON_HEAD = rf"(?P<key>{_PERSON_KEY})['\"]?\)*(?:::\w+)?\s*"
_SQL_PERSON = re.compile(
    rf"{_SQL_PERSON_HEAD}(?:{_OPERATOR}|,)\s*+(?:\w++\s*+)?[(\[\s]*+(?:array\s*+\[\s*+)?"
    rf"(?P<values>{_MARKED}(?:::\w+)?(?:\s*(?:,|\band\b)\s*{_MARKED})*)",
    re.IGNORECASE,
)
_SQL_PERSON_NUMBER = re.compile(rf"{_SQL_PERSON_HEAD}{_OPERATOR}[\s(]*\d+(?:\s*,\s*\d+)*\b", re.IGNORECASE)
_SQL_PERSON_LAST = re.compile(rf"(?P<values>{_MARKED})\s*=\s*(?:\w+\.)?\"?(?P<key>{_PERSON_KEY})\b", re.IGNORECASE)
_SQL_SECRET = re.compile(rf"{_CREDENTIAL}\"?(?:\s*(?:=|<>|\bto\b|,)\s*|\s+){_MARKED}", re.IGNORECASE)
# Values of states and times, which contain no user id.
_SQL_KEPT = re.compile(
    r"\b(?:(?:\w+_)?stat(?:us|e)\"?\s*(?:=|<>|!=|\b(?:not\s+)?in\s*\()|interval|timestamp(?:tz)?)"
    rf"\s*(?P<values>{_MARKED}(?:\s*,\s*{_MARKED})*)",
    re.IGNORECASE,
)
_KEPT_LITERAL = re.compile(r"\A'(?:[A-Z_]+|\d[\w .:+-]*)'")
_SQL_ARGUMENTS = re.compile(
    r"\b(?:values|(?:execute|call)\s+[\w.]+)(?:[\s,]*\((?:[^()]++|\((?:[^()]++|\([^()]*+\))*+\))*+\)?)+", re.IGNORECASE
)
_SQL_SETTING = re.compile(
    r"(?P<head>\bset\s+(?:(?:local|session)\s+)?\w+\.[\w.]+\s*(?:=|\bto\b)\s*)[^\s;]+", re.IGNORECASE
)
_NUMBER = re.compile(r"(?<![\0$\w.])\d[\d.]*(?![\0\w])")
_MARKED_LITERAL = re.compile(_MARKED)


def redact_sql(text: str, person: Person) -> str:
    """Take the literals out of a statement: user ids become tokens, states and intervals stay, others are hidden."""
    literals: list[str] = []

    def mark(found: re.Match[str]) -> str:
        if found["comment"]:
            return "/* ... */" if found["comment"].startswith("/*") else "-- ..."
        if found["name"] or re.fullmatch(_PERSON_KEY, found[0].strip("'"), re.IGNORECASE):
            return found[0]
        literals.append(found[0])
        return f"'{_MARK}{len(literals) - 1}{_MARK}'"

    marked = _LEXEME.sub(mark, cut(text).replace(_MARK, " "))
    shown: dict[int, str] = {}
    for kept in _SQL_KEPT.finditer(marked):
        shown |= {n: literals[n] for n in _literal_numbers(kept["values"]) if _KEPT_LITERAL.fullmatch(literals[n])}
    for secret in _SQL_SECRET.finditer(marked):
        shown[int(secret[1])] = f"'{SECRET}'"
    for found in (*_SQL_PERSON.finditer(marked), *_SQL_PERSON_LAST.finditer(marked)):
        for n in _literal_numbers(found["values"]):
            shown[n] = "'" + key_token(found["key"], _literal_text(literals[n]), person) + "'"
    marked = _SQL_PERSON_NUMBER.sub(lambda m: _NUMBER.sub(lambda number: f"'{person(number[0])}'", m[0]), marked)
    marked = _SQL_SETTING.sub(rf"\g<head>'{_HIDDEN}'", marked)
    marked = _SQL_ARGUMENTS.sub(lambda m: _NUMBER.sub(_HIDDEN, m[0]), marked)
    return _MARKED_LITERAL.sub(lambda m: shown.get(int(m[1]), f"'{_HIDDEN}'"), marked)


def _literal_numbers(values: str) -> list[int]:
    return [int(n) for n in _MARKED_LITERAL.findall(values)]


def _literal_text(written: str) -> str:
    """Return the text of an SQL literal."""
    if written.startswith("$"):
        inner = written.strip("$").partition("$")[2].rpartition("$")[0] or written.strip("$")
    else:
        inner = written.partition("'")[2].removesuffix("'").replace("''", "'")
    return inner


def _end_of_statement(text: str, found: re.Match[str], *, in_json: bool) -> int:
    """Return the end of the statement that begins there: its closing bracket or quote, else the end of the text."""
    opened = found[0].strip()[-1:]
    if opened == "[":
        ends = [text.find("]; ", found.end()), text.rfind("]", found.end())]
        return next((end for end in ends if end >= 0), len(text))
    return _end_of_text(text, found.end(), quoted=in_json or opened == '"')

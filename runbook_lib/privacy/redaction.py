r"""Find secrets and user ids in free text: log lines of PostgreSQL, Java and nats-server, SQL, JSON, URLs. Pure.

A secret becomes `***`, a user id what the caller makes of it, and a value that may be either `...`. What is recognised
is tested by tests/kit/corpus.py. A library for secrets (detect-secrets 1.5) was measured on those lines and left out:
without its entropy detectors 248 of 292 secrets stay, with them every line that must be kept is flagged, and it knows
no user ids.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
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


# A name, an operator and its values ----------------------------------------------------------------------------

#: Blanks within a line: also those of a Japanese input method and of web pages, and those without a width.
_BLANK = (
    r"(?:[ \t\r\f\v\u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]"
    r"|\\{1,15}(?:t|u(?:00a0|20[0-6][0-9a-f]|3000|feff)))*+"
)
# A quote, also in JSON within JSON (\"...\"), whose levels double the backslashes, as some JSON writers escape '
# (\u0027), in a URL (%22) and in HTML (&quot;).
_PERCENT_QUOTE = r"%(?:25)*2[27]"
_HTML_QUOTE = r"&(?:quot|apos|\#0*3[49]|\#x2[27]);"
_QUOTE = rf"(?:\\{{0,15}}[\"'`]|\\{{1,15}}u002[27]|{_PERCENT_QUOTE}|{_HTML_QUOTE}|[“”‘’「」『』])"
_CLOSING = str.maketrans("“‘「『", "”’」』")
#: Three quotes of Python, and two of a text in another one, as CSV and SQL write them; two alone are an empty value.
_MANY_QUOTES = r"(?P<m%s>\\{0,15}[\"'])(?P=m%s){1,2}+(?=[^\s\\\"',;:)\]}&<.])"
_OPENING = re.compile(rf"\A(?:{_MANY_QUOTES % (1, 1)}|{_QUOTE}|\$\$)")


def _quoted_pattern(name: str) -> str:
    """Return the pattern of a value in quotes; a line may be cut off within. Its groups have this name."""
    return (
        rf"(?:(?P<q{name}>(?<!\\)(?:{_MANY_QUOTES % (name, name)}|\\{{1,63}}+(?:[\"'`]|u002[27]))|{_HTML_QUOTE}|`|\$\$)"
        rf"(?:(?!(?<!\\)(?P=q{name}))[^\n])*(?:(?P=q{name}))?"
        rf"|(?P<e{name}>{_PERCENT_QUOTE})(?:(?!(?P=e{name}))\S)*(?:(?P=e{name}))?"
        r"|\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\{1,15}'(?=\w)|\\.|''|'\\{1,15}'')*'?"
        r"|“[^”\n]*”?|‘[^’\n]*’?|「[^」\n]*」?|『[^』\n]*』?)"
    )


def _replace_within_quotes(value: str, replace: Callable[[str], str]) -> str:
    """Replace what is between the quotes of a value, if it has any; it is given without its escapes."""
    opening = found[0] if (found := _OPENING.match(value)) else ""
    closing = opening.translate(_CLOSING)
    inner = value[len(opening) :]
    closed = bool(opening) and inner.endswith(closing)
    inner = inner.removesuffix(closing) if closed else inner
    return opening + replace(_remove_escapes(inner, opening)) + (closing if closed else "")


def _remove_escapes(inner: str, opening: str) -> str:
    if opening == "'":
        return inner.replace("''", "'").replace("\\'", "'")
    if opening.startswith(("%", "&")):
        return html.unescape(unquote(inner))
    if opening:
        for _ in range(opening.count("\\").bit_length() + 1):
            try:
                inner = str(json.loads(f'"{inner}"'))
            except ValueError:
                break
    return inner


#: b'...' of Python, E'...' and U&'...' of SQL.
_PREFIX = r"(?:(?:[benrux@]|u&)(?=\\{0,15}[\"']))?"
# {"name": "password", "value": ...} and <property name="password" value="..."/>
_VALUE = rf"(?:,|\n|\\{{1,15}}n|(?<=\s))(?:\s|\\{{1,15}}n)*{_QUOTE}?value{_QUOTE}?{_BLANK}[:=]"
#: What stands between a name and its value. Behind a comparison that is no "=" stands a quote, a bracket or a number.
_OPERATOR = (
    rf"(?:::?=|[-+*/.?|&^!<>~]{{0,2}}={{1,3}}(?:>|~\*?)?|\.{{3,}}|->|[:：＝]|%(?:25)*3[DA]|\\{{1,15}}u003[da]|&\#(?:61|58|x3[da]);"
    rf"|>(?=\S)|{_VALUE}|(?:<-|<>|[<>]|!?~\*?|\b(?:(?:not[ \t]+)?(?:i?like|between)|to|default"
    r"|is[ \t]+(?:not[ \t]+)?distinct[ \t]+from)\b)"
    rf"(?=\s*(?:(?:any|all|some|array|cast|lower|upper|symmetric)\b|{_PREFIX}(?:{_QUOTE}|\$\$)|[(\[]|\d{{4}}))"
    r"|\b(?:not[ \t]+)?in\b(?=\s*[(\[]))"
)
# A type may stand before it: password text := 'x', var password string = "x".
_TYPED_OPERATOR = (
    r"(?:(?:[ \t]+[\w.()\[\]*<>]{1,40}){1,3}[ \t]*:="
    rf"|[ \t]+[\w.()\[\]*<>]{{1,40}}[ \t]*(?:=|\bdefault\b)(?=[ \t]*{_PREFIX}{_QUOTE}))"
)
# Words that follow a name in prose: "userId: must not be blank".
_PROSE_WORDS = (
    "must|is|are|was|not|has|cannot|can|should|may|required|missing|null|none|nil|undefined|unknown|invalid|rejected|expired"
    "|empty|blank|it|this|that|see|no|and|or|for|in|of|to|from|at|with|by|as|on|field|column|parameter|header|value|the|does|did|will|when"
    "|未設定|なし|無し|あり|不明|空"
)
_PROSE = rf"(?!(?:{_PROSE_WORDS})(?:[\s,;.)\]}}\"'\\&、。]|$))"
_BRACKETS = dict(zip("([{（［｛【", ")]}）］｝】", strict=True))
#: A bracket opens a list; before it, a function or a class with a value in quotes, or with a field that is called so.
_LIST = re.compile(
    rf"""
    (?:(?P<sql>(?:any|all|some|array|cast|lower|upper)[ \t]*+(?=[(\[]))
      | (?:new[ ]|\[\])?[\w&][\w.:<>&]{{0,80}}(?:\[\])?(?=[(\[{{][ \t(\[{{]*(?:value[ \t]*=|{_PREFIX}{_QUOTE}))
      | %[wi](?=[\[({{])){{0,2}}
    (?=\([ \t]*(?:null[ \t]*,|{_PROSE})|[\[{{（［｛【])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ITEM = re.compile(
    rf"""
    (?P<key>(?>{_quoted_pattern("1")})(?={_BLANK}(?::|=>))) | {_PREFIX}(?P<quoted>{_quoted_pattern("2")})
    | \b(?:values?|plain|text|eq|in)[ \t]*[:=]
    | (?P<bare>(?![:=])(?:[^\s,;()\[\]{{}}（）［］｛｝【】"'`\\、，；]|(?<=\w)["'`](?=\w)|\\(?![nrtu"'\\]))+)
    | .
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_NO_ITEM = re.compile(r"\A(?:null|none|nil|undefined|true|false|[:=|>.]+)\Z", re.IGNORECASE)
# A value in quotes; a quote that closes a text which ends with an operator opens none.
_IN_QUOTES = (
    r"(?!\\{0,15}[\"'](?:[\])}]*(?:,\s*\\{0,15}[\"'{\[]|\s*$)|\s*:))"
    rf"{_PREFIX}(?P<quoted>{_quoted_pattern('1')})"
)
# Or as XML writes an element, or a word. Punctuation belongs to it if it goes on behind it.
_SINGLE = re.compile(
    rf"""
    {_IN_QUOTES}
    | (?P<bare>(?<=>)[^\s<>][^<>\n]*(?=</) | {_PROSE}(?![{{\[(<（「])(?:[^\s&,;)\]}}"'`\\<、。，；）」]|&(?![\w.-]+=)
        |[,;](?![\s"']|[\w.-]+[=:](?![=,;\s]|$)|$)|[)\]}}"'`](?=\w)|<(?!/)|\\(?![nrtu"'\\]))+)
    """,
    re.IGNORECASE | re.VERBOSE,
)
# As Java writes objects and maps: X(userId=Jane Doe, n=1).
_FIELD = re.compile(
    rf"{_PROSE}(?P<bare>(?<==)[^\s,=()\[\]{{}}\"'`\\][^,=()\[\]{{}}\n]*(?=, [\w.]+=|[)\]}}]))", re.IGNORECASE
)
#: What leads to another value of the same name: a comma, "a" + "b", 'a' and 'b', password: str = "x".
_AND_QUOTED = rf"(?=(?>{_IN_QUOTES})(?!{_BLANK}(?:[:=]|=>)))"
_NEXT = re.compile(
    rf"""
    (?<=\S)(?: (?:,|{_BLANK}(?:\|\||[+.])[ \t]*|[ \t]+and[ \t]+){_AND_QUOTED}
      | (?<=["'])(?=\w) | [)\]>]{{0,3}}[ \t]*:?=(?![=>~])[ \t]*(?=\S) | 、(?=[!-~]+(?:[、。,\s]|$)) )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# The same for the name of several.
_NEXT_OF_MANY = re.compile(
    rf"(?<=\S){_BLANK}[,、，]{_BLANK}(?:{_AND_QUOTED}|(?=(?:[^\W\d_]|[\w-]{{4}})[\w.@|-]*=*(?![\w.@|=:-])))",
    re.IGNORECASE,
)
_MANY = re.compile(
    rf"{_BLANK}[,、，]{_BLANK}(?:(?={_PREFIX}(?>{_quoted_pattern('1')})(?!{_BLANK}(?:[:=]|=>)))|(?=(?:[^\W\d_]|[\w-]{{4}})[\w.@|-]*=*(?![\w.@|=:-])))",
    re.IGNORECASE,
)
_MANY = re.compile(r"(?P<ids>ids)\Z|(?<!pas)s\Z", re.IGNORECASE)


def _heads_pattern(names: str, blank: str) -> re.Pattern[str]:
    """Return the pattern of what stands before a value: one of the names, and an operator or a blank."""
    return re.compile(
        rf"""
        (?:(?P<pair>(?<=\w)\({_QUOTE}|\((?:b?')?)|(?<![\w.-])(?<!</))
        (?P<field>(?<=[(\[{{])|(?<=,[ ]))?(?P<option>(?=--?\w))?
        [\w.-]*?(?P<key>{names})(?![A-Za-z0-9_])(?P<close>{_QUOTE}{{1,2}})?
        (?:
            (?:\[\w*\]|%5B\w*%5D|[\])](?!:(?![:=])|[ ]?=[ ]?\()|,[ \t]*'[^'\n]*'\))?(?:::\w+)?  # x["name"] and f(name)
            (?:{_BLANK}{_OPERATOR}|{_TYPED_OPERATOR}){_BLANK}
          | (?(pair),[ \t]*(?={_PREFIX}(?>{_quoted_pattern("3")})[ \t]*\))|(?!))                # put("name", "value")
          | (?(option)(?:[ \t]+|,[ \t]*(?={_QUOTE}))(?!{_QUOTE}?-)|(?!))                          # --name value
          | [はがの]?(?=[「『])
          | (?=\((?:value=|{_QUOTE}))                                                           # Name("value")
          | {blank}
        )
        """,
        re.IGNORECASE | re.VERBOSE,
    )


def _read_values(line: str, head: re.Match[str], *, in_sql: bool) -> Iterator[re.Match[str]]:
    """Yield the values behind a name and its operator; the last group of each is not "bare" if it is in quotes."""
    at, many = head.end(), _MANY.search(head["key"])
    while True:
        if opened := _LIST.match(line, at):
            yield from _read_list(
                line, opened.end(), keys=bool(many and many["ids"]), words=not in_sql and not opened["sql"]
            )
            return
        value = (_FIELD.match(line, at) if head["field"] is not None else None) or _SINGLE.match(line, at)
        if not value:
            return
        yield value
        follows = (_NEXT_OF_MANY.match(line, value.end()) if many else None) or _NEXT.match(line, value.end())
        if not follows:
            return
        at = follows.end()


def _read_list(line: str, at: int, *, keys: bool, words: bool) -> Iterator[re.Match[str]]:
    """Yield the values up to the closing bracket, with the keys of objects, and with words in round brackets."""
    ends: list[str] = []
    while item := _ITEM.match(line, at):
        at = item.end()
        if item[0] in _BRACKETS:
            ends.append(_BRACKETS[item[0]])
        elif item[0] == ends[-1]:
            ends.pop()
            if not ends:
                return
        elif item["bare"]:
            if (words or ")" not in ends) and not _NO_ITEM.match(item["bare"]):
                yield item
        elif item["quoted"] or (item["key"] and keys):
            yield item


def _replace_values(
    line: str, heads: re.Pattern[str], mask: Callable[[str, str, bool], str], *, in_sql: bool = False
) -> str:
    """Replace the values of names; `mask` gets the name, the value, and whether it stands in quotes."""
    shown, at = [], 0
    while head := heads.search(line, at):
        shown.append(line[at : head.end()])
        at = head.end()
        # A number in JSON becomes a text, so that the line stays what it was.
        quote = head["close"] if head["close"] and head[0].rstrip().endswith(":") else ""
        for value in _read_values(line, head, in_sql=in_sql):
            kind = str(value.lastgroup)
            masked = mask(head["key"], value[kind], kind != "bare")
            if kind == "bare" and masked != value[kind] and line[value.start() - 1] != quote[-1:]:
                masked = f"{quote}{masked}{quote}"
            shown += [line[at : value.start(kind)], masked]
            at = value.end()
    return "".join([*shown, line[at:]])


# Secrets -----------------------------------------------------------------------------------------------------

_SPACE = r"(?:[ +]|%20)"  # in a URL it is written otherwise
_PEM = re.compile(
    rf"-----BEGIN(?:{_SPACE}|[A-Z])*(?:PRIVATE{_SPACE}KEY(?:{_SPACE}BLOCK)?|SEED|JWT)-----"
    rf".*?(?:-END(?:{_SPACE}|[A-Z])*-+|\Z)",
    re.DOTALL,
)
# The seed of an nkey, and tokens of Discord (Base64 of digits, a time, a hash) and of Telegram.
_BARE_SHAPES = re.compile(
    r"\bS[UAONCX][A-Z2-7]{56}\b|\b(?:[MNO][DTjz][AEIMQUYcgk][w-z0-5]){5,7}[\w-]{0,3}\.[\w-]{6,7}\.[\w-]{27,}"
    r"|(?<!\d)\d{8,10}:A[\w-]{34}(?![\w-])"
)
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
    | (?<=hooks\.slack\.com/services/)[^\s"'<>]+ | (?<=/api/webhooks/)\d+/[\w-]+
    | (?<=\bBasic[ ])(?=\S*[\d=])[\w+/=]{{8,}} | (?<=\bBearer[ ])(?=\S*[\d=_.])[\w.~+/=-]{{8,}}
    """,
    re.VERBOSE,
)
_SHAPE_WORDS = (
    "eyJ",
    "SCRAM-",
    "md5",
    "$2",
    "AKIA",
    "ASIA",
    "ABIA",
    "ACCA",
    "slack",
    "webhooks",
    "Bearer",
    "Basic",
    *_ISSUERS,
)
_HEADER = re.compile(
    rf"""
    (?P<head>(?P<before>["'])?\b(?:authorization|cookie)(?:
        {_QUOTE}?{_BLANK}{_OPERATOR}{_BLANK}\[?{_PREFIX}
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
    *("pass", "pw", "secret", "token", "credential", "jwt", "key", "sig", "session"),
    *("パス", "トークン", "秘密鍵", "シークレット", "暗証", "キー"),
)
_CREDENTIAL = (
    r"(?:password|passwd|passphrase|passcode|pwd|secret|token|credential|(?:(?<![a-z])|(?<=-D|\\[nrt])|(?<=%[0-9a-f]{2}))(?:pass|pw|jwt)|(?-i:Pass)"
    r"|jsessionid|(?:api|access|account|private|secret|signing|encryption)[_. -]?key|shared[_-]?access[_-]?signature"
    r"|(?<=[?&])x-amz-signature|(?<=[\"'?&])sig|パスワード|パスフレーズ|トークン|秘密鍵|シークレット|暗証番号|(?:API|アクセス)キー)"
    r"(?:s|[_.-]?(?:hash|value|id))?"
)
_PERSON_KEY = r"(?:user[_. -]?ids?|aggregate[_. -]?(?:key|id)s?|ユーザー?[_ -]?(?:ID|ＩＤ))"
# PASSWORD 'x', token "x"; but secret "x" names an object of Kubernetes.
_SECRETS = _heads_pattern(_CREDENTIAL, rf"(?:(?<=word)|(?<=phrase)|(?<=token)|(?<=key))[ \t]+(?={_PREFIX}{_QUOTE})")
_CREDENTIAL_NAME = re.compile(rf"{_CREDENTIAL}\Z", re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Return whether the value of a parameter of this name is a secret."""
    return bool(_CREDENTIAL_NAME.search(name))


# curl -u app:x
_USER_OPTION = re.compile(
    r"(?P<head>(?<!\S)(?:-u[ =]?|--(?:proxy-)?user[ =])[\"']?[^\s:\"'-][^\s:\"']*:)[^\s\"']+", re.IGNORECASE
)


#: A character of a Japanese text that JSON escapes though it need not.
_ESCAPED = re.compile(r"\\{1,15}u(201[89cd]|[3-9][0-9a-f]{3}|ff[0-9a-e][0-9a-f])", re.IGNORECASE)
# A value on the line after its name, or before it: YAML, JSON, XML.
_VALUE_OF = rf"{_QUOTE}?\bvalue{_QUOTE}?{_BLANK}[:=]{_BLANK}"
_VALUE_FOLLOWS = re.compile(_VALUE_OF, re.IGNORECASE)


def _name_pattern(name: str) -> str:
    return (
        rf"{_QUOTE}?\b(?:name|key){_QUOTE}?{_BLANK}[:=]{_BLANK}{_QUOTE}?"
        rf"(?=[\w. -]*(?:(?P<{name}>{_PERSON_KEY})|{_CREDENTIAL}))[\w. -]++{_QUOTE}?"
    )


_NAMED_VALUE = re.compile(
    rf"""
    (?P<head>{_name_pattern("k1")},?[^\S\n]*\n\s*{_VALUE_OF})(?:(?P<quoted>{_quoted_pattern("1")})|(?P<rest>[^\s"'\\][^\n]*))
    | (?P<before>{_VALUE_OF})(?P<first>{_quoted_pattern("2")})(?<![^\\]\s)(?=,?\s*{_name_pattern("k2")})
    """,
    re.IGNORECASE | re.VERBOSE,
)
# password: | and its lines, which stand further in.
_BLOCK_SCALAR = re.compile(
    rf"^(?P<in>[ \t]*+)(?P<key>[^\n]*{_CREDENTIAL}[\"']?[ \t]*:[ \t]*[|>][+-]?[ \t]*\n)"
    r"(?:(?P=in)[ \t]+[^\n]*(?:\n|\Z))+",
    re.IGNORECASE | re.MULTILINE,
)


def redact_blocks(text: str, person: Person | None = None) -> str:
    """Take out the secrets, and the user ids if `person` makes tokens, that a line alone does not show."""
    if "\\u" in text:
        text = _ESCAPED.sub(lambda m: chr(int(m[1], 16)), text)
    if "-----BEGIN" in text:
        text = _PEM.sub(SECRET, text)
    lower = text.lower()
    if _contains_any(lower, "name", "key") and _VALUE_FOLLOWS.search(lower):
        text = _NAMED_VALUE.sub(partial(_replace_named_value, person), text)
    if _contains_any(lower, "|\n", ">\n", "|-\n", ">-\n"):
        text = _BLOCK_SCALAR.sub(rf"\g<in>\g<key>\g<in>  {SECRET}\n", text)
    return text


def _replace_named_value(person: Person | None, found: re.Match[str]) -> str:
    user, quoted = found["k1"] or found["k2"], found["quoted"] or found["first"]
    if user and not person:
        return found[0]

    def mask(value: str) -> str:
        return key_token(user, value, person) if user and person else SECRET

    return (found["head"] or found["before"]) + (
        _replace_within_quotes(quoted, mask) if quoted else mask(found["rest"])
    )


def redact_secrets(text: str) -> str:
    """Take secrets out of a text; once more changes nothing."""
    return "\n".join(
        _redact_secrets_of_line(line, line.lower()) for line in redact_blocks(_cut_lines(text)).split("\n")
    )


def _redact_secrets_of_line(line: str, lower: str) -> str:
    """Take secrets out of a line; `lower`, the line in lower case, tells which patterns to try."""
    if "://" in line and "@" in line:
        line = _URL_TOKEN.sub(rf"\g<head>{SECRET}@", _URL_PASSWORD.sub(rf"\g<head>:{SECRET}@", line))
    line = _BARE_SHAPES.sub(SECRET, line)
    if "%3a%2f%2f" in lower:
        line = _ENCODED_PASSWORD.sub(rf"\g<head>{SECRET}%40", line)
    if _contains_any(line, *_SHAPE_WORDS):
        line = _SHAPES.sub(rf"\g<before>{SECRET}", line)
    if _contains_any(lower, "authorization", "cookie"):
        line = _HEADER.sub(lambda m: m["head"] + _replace_within_quotes(m["quoted"] or "", lambda _: SECRET), line)
    if _contains_any(lower, *_SECRET_WORDS):
        line = _replace_values(line, _SECRETS, _replace_secret)
    if _contains_any(lower, "-u", "-user"):
        line = _USER_OPTION.sub(rf"\g<head>{SECRET}", line)
    return line


def _contains_any(line: str, *words: str) -> bool:
    return any(word in line for word in words)


def _replace_secret(_name: str, value: str, in_quotes: bool) -> str:
    return _replace_within_quotes(value, lambda inner: SECRET if inner else "") if in_quotes else SECRET


# People ------------------------------------------------------------------------------------------------------

_PEOPLE = _heads_pattern(_PERSON_KEY, rf"[ \t]+(?:(?={_PREFIX}{_QUOTE}|\[)|(?<=(?-i:erI)d[ ])|(?<=for[ ]user_id[ ]))")
# A parameter or a column, which is no user.
_REFERENCE = re.compile(r"\A(?:[:$?*@]|%(?![0-9A-F]{2})|(?:\w+\.)*user_?id\b)", re.IGNORECASE)
_COLUMN = re.compile(r"\A\w+(?:\.\w+\Z|\()")
_ID = re.compile(r"[^,;()\[\]{}<>]+")
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
        _redact_entry(entry, person) for entry in _split_entries(redact_blocks(_cut_lines(text), person).split("\n"))
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
    line = _redact_secrets_of_line(line, lower)
    if _contains_any(lower, "input", "value", "invalid", "range: ", "$", "parameter", "failing", "payload", "copy "):
        line = _ECHOED.sub(lambda m: _replace_echoed(m, in_json=in_json), line)
    if _contains_any(lower, "user", "aggregate", "ユーザ"):
        if _contains_any(line, ")=(", ") = ("):
            line = _KEY_DETAIL.sub(lambda m: _replace_key_detail(m, person), line)
        line = _replace_values(line, _PEOPLE, partial(_replace_person, person, in_sql), in_sql=in_sql)
        if _contains_any(line, "'=", "' ="):
            line = _LITERAL_FIRST.sub(lambda m: _replace_within_quotes(m["quoted"], person) + m["rest"], line)
    if _contains_any(lower, "/users/", "/inbox/"):
        line = _PATH.sub(lambda m: person(unquote(m[0])), line)
    if _contains_any(line, "@", "＠", "%40", "%2540"):
        line = _MAIL.sub(lambda m: person(unquote(unquote(m[0]))), line)
    return line


def _replace_person(person: Person, in_sql: bool, key: str, value: str, in_quotes: bool) -> str:
    def token(user: str) -> str:
        return key_token(key, user, person)

    if in_quotes:
        return _replace_within_quotes(value, token)
    if _REFERENCE.match(value) or (in_sql and "_" in key and _COLUMN.match(value)):
        return value
    users = value.rstrip(".:!?")
    return _ID.sub(lambda m: token(unquote(m[0])), users) + value[len(users) :]


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
_SQL_PERSON_HEAD = rf"(?P<key>{_PERSON_KEY})['\"]?\)*(?:::\w+)?\s*+"
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

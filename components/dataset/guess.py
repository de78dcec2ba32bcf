"""What a column is for, guessed from its name and values: key, label, moment, and the kind of a field."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.columns import FIRST_SECOND, ColumnError, moments, numbers
from components.dataset.signs import useless
from components.dataset.spec import Kind, Source
from components.dataset.survey import Seen
from components.dataset.values import EXACT_FLOAT

USERS = (
    *("user", "customer", "visitor", "member", "reader", "viewer", "player", "client", "buyer", "subscriber", "person"),
    *("account", "profile", "uid", "reviewer", "guest", "household"),
    *("nutzer", "benutzer", "kunde", "kunden", "leser", "utilisateur", "client", "usuario", "cliente", "utente"),
)
ITEMS = (
    *("item", "product", "movie", "film", "article", "news", "story", "book", "sku", "asin", "isbn", "song", "track"),
    *("video", "show", "ad", "creative", "listing", "offer", "course", "recipe", "game", "document", "doc", "content"),
    *("post", "business", "place", "poi", "hotel", "job", "iid", "mid", "pid", "goods", "anime", "banner"),
    *("artikel", "produkt", "buch", "produit", "livre", "producto", "libro", "articulo", "prodotto"),
)
#: Items by what an English sentence calls them.
THINGS = frozenset(
    {
        *("product", "movie", "film", "article", "story", "book", "song", "track", "video", "show", "creative"),
        *("listing", "offer", "course", "recipe", "game", "document", "post", "business", "place", "hotel", "banner"),
    }
)
#: Words that name a user or an item where nothing better does.
LAST_RESORT = {"user": ("session", "device", "cookie", "ip"), "item": ("url", "link", "page", "target")}
KEY_WORDS = frozenset({"id", "key", "code", "number", "no", "nr", "hash", "uuid", "guid", "idx", "index"})
LABELS = (
    *(
        "label",
        "click",
        "clicked",
        "clicks",
        "converted",
        "conversion",
        "purchased",
        "bought",
        "liked",
        "like",
        "rating",
    ),
    *("stars", "score", "engaged", "watched", "read", "opened", "response", "target", "event", "action", "interaction"),
    *("behavior", "behaviour", "feedback", "outcome", "y"),
    *("klick", "geklickt", "gelesen", "gekauft", "bewertung", "clic", "achat", "compra", "valoracion"),
)
TIMES = (
    *("timestamp", "time", "ts", "datetime", "date", "when", "at", "moment", "day", "unix", "epoch"),
    *("zeit", "zeitpunkt", "datum", "heure", "fecha", "hora"),
)
#: What is measured only once the impression is over.
AFTER = frozenset(
    {
        *("dwell", "duration", "watch", "watched", "playtime", "spent", "revenue", "purchase", "purchased", "bought"),
        *("conversion", "converted", "order", "ordered", "paid", "bounce", "scroll", "scrolled", "review", "comment"),
        *("feedback", "liked", "like", "shared", "share", "follow", "followed", "returned", "refund", "completion"),
        *("finished", "rating", "stars", "clicks", "clicked", "cart", "basket", "helpful", "vote", "votes"),
        *("dauer", "lesedauer", "rezension", "kommentar", "umsatz", "bestellung", "commentaire", "avis", "duree"),
    }
)
TITLES = ("title", "name", "headline", "caption", "subject", "titel", "uberschrift", "titre", "titulo", "titolo")
CODED = frozenset(
    {
        *("zip", "zipcode", "postcode", "postal", "plz", "phone", "type", "class", "group", "category", "cat", "code"),
        *("gender", "sex", "occupation", "job", "region", "segment", "cluster", "brand", "store", "country", "city"),
        *("language", "lang", "slot", "version", "weekday", "month", "hour", "campaign"),
    }
)
YES = frozenset({"1", "true", "t", "yes", "y", "click", "clicked", "positive", "pos", "like", "liked", "ja", "oui"})
NO = frozenset({"0", "false", "f", "no", "n", "-1", "negative", "neg", "dislike", "skip", "nein", "non"})
SHALLOW = frozenset({"view", "viewed", "impression", "show", "shown", "display", "displayed", "exposure", "skip", "pv"})
GENDERS = {"f": "female", "m": "male", "w": "female", "d": "diverse"}
FORMS = (
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d.%m.%y %H:%M", "%d.%m.%y", "%Y/%m/%d %H:%M:%S"),
    *("%Y/%m/%d %H:%M", "%Y/%m/%d", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S"),
    *("%m/%d/%Y %H:%M", "%m/%d/%Y", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y"),
    *("%d %b %Y %H:%M:%S", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%m %d, %Y", "%d/%b/%Y:%H:%M:%S %z"),
    *("%a %b %d %H:%M:%S %Y", "%Y%m%d%H%M%S", "%Y%m%d%H%M", "%Y%m%d"),
)
#: Seconds from 1990 and to 2100, where the moments of a log lie.
EARLY, LATE = 631_152_000, 4_102_444_800
SEPARATORS = ("|", ";", ",", "/")
TRIED = 2_000


def tokens(name: str) -> list[str]:
    """The words of a name, in lower case and plain letters: 'userID' is user, id."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", plain)
    return [word for word in re.split(r"[^a-z0-9]+", plain.lower()) if word]


def spoken(name: str) -> str:
    """A column's name as one would say it, in its own letters: 'birthYear' is birth year."""
    apart = re.sub(r"(?<=[^\W_\dA-Z])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[_.\-/:]+", " ", apart).lower().split())


def identifier(name: str, number: int) -> str:
    """A field name made of a column's name; of its number where none of its letters are plain."""
    made = "_".join(tokens(name))
    return made if made[:1].isalpha() else (f"c_{made}" if made else f"column_{number}")


# --- keys --------------------------------------------------------------------------------------------------------


def key_score(name: str, side: Literal["user", "item"]) -> float:
    """How much a name sounds like the key of a user or an item; from 2 on it does."""
    words = tokens(name)
    known = USERS if side == "user" else ITEMS
    rest = [word for word in words if word not in KEY_WORDS]
    rest = [word.removesuffix("id") or word for word in rest]
    found = [word for word in rest if word in known or word.removesuffix("s") in known]
    if found:
        score = 3 + (len(words) == len(found) or len(rest) < len(words)) - 2 * (len(rest) > len(found))
        return score - 0.01 * min(known.index(word) if word in known else len(known) for word in found)
    return 2.2 if set(rest) & set(LAST_RESORT[side]) and len(rest) == 1 else 0.0


def may_be_key(seen: Seen) -> bool:
    """Whether a column's values could name something: single values, hardly ever missing, several different ones."""
    return not seen.types & {"list", "record", "boolean", "moment", "float"} and (
        seen.empty <= 0.05 * seen.rows and (seen.different is None or seen.different > 1)
    )


def overlap(seen: Seen, table: Seen) -> float:
    """Share of a column's different values that a table's column has too."""
    values = seen.values if seen.values is not None else seen.known.unique()
    others = table.values if table.values is not None else table.known.unique()
    return (pc.sum(pc.is_in(values, others)).as_py() or 0) / max(len(values), 1)


# --- label -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """The label's column and rules, and why."""

    column: str
    positive: str
    negative: str
    why: str


def label_of(seen: Seen, decimal: str) -> Label | None:
    """The rules that make a label of a column, if its values allow any."""
    if seen.is_list or seen.different is None or not 2 <= seen.different <= 101:
        return None
    counts = Counter(seen.known.to_pylist())
    values = sorted(seen.values.to_pylist())
    shares = ", ".join(f"{value} {count / max(len(seen.known), 1):.0%}" for value, count in counts.most_common(5))
    folded = {value.lower(): value for value in values}
    if len(values) == 2:
        yes, no = set(folded) & YES, set(folded) & NO
        if yes and (no or len(yes) == 1):
            positive = folded[min(yes)]
        elif set(folded) & SHALLOW:
            positive = next(value for word, value in folded.items() if word not in SHALLOW)
        elif no:
            positive = next(value for word, value in folded.items() if word not in no)
        else:
            positive = counts.most_common()[-1][0]
        negative = next(value for value in values if value != positive)
        return Label(seen.name, f"== {positive}", f"== {negative}", f"two values: {shares}")
    scale = _as_numbers(seen, decimal)
    if scale is not None:
        return _rating(seen.name, sorted(set(scale.drop_null().to_pylist())), shares)
    shallow = [value for word, value in folded.items() if word in SHALLOW | NO]
    if len(values) <= 12 and len(shallow) == 1:
        why = f"kinds of events: {shares}; all but '{shallow[0]}' are taken as positive"
        return Label(seen.name, f"!= {shallow[0]}", f"== {shallow[0]}", why)
    return None


def _rating(name: str, values: list[float], shares: str) -> Label | None:
    low, high = values[0], values[-1]
    middle = round((low + high) / 2)
    if not low <= middle < high or (low == middle and len(values) > 2):
        return None
    why = f"a scale from {low:g} to {high:g} ({shares}): above its middle is positive, below negative, {middle} dropped"
    return Label(name, f"> {middle}", f"< {middle}", why)


def label_score(name: str) -> float:
    """How much a name sounds like a label's."""
    words = tokens(name)
    found = [LABELS.index(word) for word in words if word in LABELS]
    beside = [
        word for word in words if word not in LABELS and word not in {"is", "has", "was", "type", "user", "overall"}
    ]
    if not found:
        return 1.0 if words == ["overall"] else 0.0
    return 3 - 0.02 * min(found) - 0.5 * len(beside)


# --- moments -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """How a column's moments are written: a unit of numbers since 1970, or a form, or neither (ISO 8601)."""

    unit: Literal["s", "ms", "us"] | None = None
    form: str | None = None
    doubt: str = ""

    @property
    def words(self) -> str:
        """The way of writing, for a comment."""
        if self.unit:
            return f"numbers since 1970 in {self.unit}"
        return f"of the form {self.form}" if self.form else "ISO 8601 or time stamps"


def moment_of(seen: Seen) -> Moment | None:
    """How the column's moments are written, if its values are moments."""
    if seen.types & {"list", "record", "boolean"} or len(seen.known) == 0:
        return None
    if "moment" in seen.types:
        return Moment()
    known = pc.utf8_trim_whitespace(seen.known.slice(0, TRIED))
    if pc.all(pc.match_substring_regex(known, r"^\d+(\.\d+)?$")).as_py():
        return _of_digits(known)
    if pc.any(pc.match_substring_regex(known, r"\d")).as_py() is not True:
        return None
    try:
        moments(pa.chunked_array([known]), "s")
    except ColumnError:
        return _of_form(known, FORMS)
    return Moment()


def _of_digits(known: Any) -> Moment | None:
    found = known.cast(pa.float64())
    low, high = (pc.min(found).as_py(), pc.max(found).as_py())
    for unit, scale in (("s", 1), ("ms", 10**3), ("us", 10**6)):
        if EARLY * scale <= low and high <= LATE * scale:
            return Moment(unit=unit)  # type: ignore[arg-type]
    lengths = pc.unique(pc.utf8_length(known)).to_pylist()
    return _of_form(known, FORMS[-3:]) if len(lengths) == 1 and lengths[0] in {8, 12, 14} else None


def _of_form(known: Any, forms: tuple[str, ...]) -> Moment | None:
    fitting = [form for form in forms if _fits(known, form)]
    if not fitting:
        return None
    day, month = (any(form.startswith(start) for form in fitting) for start in ("%d/%m", "%m/%d"))
    doubt = "day first or month first cannot be told from the values: look whether it is right" if day and month else ""
    return Moment(form=fitting[0], doubt=doubt)


def _fits(known: Any, form: str) -> bool:
    found = pc.strptime(known, format=form, unit="s", error_is_null=True)
    years = pc.cast(found, pa.int64())
    return found.null_count == 0 and bool(pc.all(pc.greater(years, FIRST_SECOND)).as_py())


def time_score(name: str) -> float:
    """How much a name sounds like a moment."""
    words = tokens(name)
    found = [TIMES.index(word) for word in words if word in TIMES]
    ends = [word for word in words if any(word.endswith(end) and len(word) > len(end) for end in ("time", "date"))]
    return 2 - 0.05 * min(found) if found else float(bool(ends))


# --- kinds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guess:
    """A field's kind and settings beside it, why, and what speaks against the column; without a kind it is left out.

    `unit` is that of a date in numbers.
    """

    kind: Kind | None
    why: str
    more: dict[str, Any] = field(default_factory=dict)
    warning: str = ""
    unit: str | None = None


def kind_of(seen: Seen, source: Source) -> Guess:
    """What kind of field a column makes."""
    if "record" in seen.types and seen.sample.null_count == len(seen.sample):
        return Guess(None, "holds records or lists of them; give one column per value")
    if seen.empty == seen.rows:
        return Guess(None, "is empty")
    if seen.different == 1 and seen.empty == 0:
        return Guess(None, f"is constant ({seen.values[0].as_py()!r})")
    guess = _kind(seen, source)
    share = f", {seen.empty / seen.rows:.0%} empty" if seen.empty else ""
    if guess.kind is None:
        return guess
    # Of a number it is no fault that each row has its own value.
    idle = useless(seen.sample, Kind.MULTI if seen.is_list else Kind.TEXT)
    return replace(guess, why=guess.why + share, warning=idle or guess.warning)


def _kind(seen: Seen, source: Source) -> Guess:
    many = "more than a million" if seen.different is None else f"{seen.different:,}"
    if seen.is_list:
        return Guess(Kind.MULTI, f"lists of {many} different values", {"max_values": _longest(seen.known)})
    if "boolean" in seen.types or (set(map(str.lower, _few(seen))) <= YES | NO and seen.different == 2):
        codes = {value: "yes" if value.lower() in YES else "no" for value in _few(seen)}
        return Guess(Kind.CATEGORY, "yes or no", {"codes": codes})
    return _number(seen, source, many) or _date(seen) or _words(seen, many)


def _few(seen: Seen) -> list[str]:
    return sorted(seen.values.to_pylist()) if seen.different is not None and seen.different <= 12 else []


def _number(seen: Seen, source: Source, many: str) -> Guess | None:
    found = _as_numbers(seen, source.decimal)
    if found is None:
        return None
    found = found.drop_null()
    if len(found) == 0:
        return Guess(None, "holds only words for 'no value'")
    words = set(tokens(seen.name))
    whole = pc.all(pc.and_(pc.equal(found, pc.floor(found)), pc.less(pc.abs(found), float(EXACT_FLOAT)))).as_py()
    if whole and words & KEY_WORDS and not words & {"number", "no", "nr", "index"}:
        return _category(seen, f"whole numbers that name something, by the column's name: {many} different")
    if whole and (words & CODED or (seen.different is not None and seen.different <= 12)):
        hint = "; if they are codes, write their words under 'codes', if amounts, write kind: number"
        return _category(seen, f"{many} different whole numbers ({', '.join(_few(seen)) or '...'})" + hint)
    when = moment_of(seen)
    if when is not None and time_score(seen.name) > 0:
        return _date(seen)
    low, middle, high = (pc.quantile(found, q)[0].as_py() for q in (0, 0.5, 0.99))
    why = f"numbers from {low:g} to {pc.max(found).as_py():g}, half of them below {middle:g}"
    if low >= 0 and middle > 0 and high > 50 * middle:
        return Guess(Kind.NUMBER, why + "; a long tail, so the bins are on a log scale", {"scale": "log"})
    return Guess(Kind.NUMBER, why + "; in bins of equal count")


def _as_numbers(seen: Seen, decimal: str) -> Any:
    try:
        return numbers(pa.chunked_array([seen.known]), decimal)
    except ColumnError:
        return None


def _date(seen: Seen) -> Guess | None:
    when = moment_of(seen)
    if when is None or (when.unit and time_score(seen.name) == 0):
        return None
    more = {"format": when.form} if when.form else {}
    return Guess(Kind.DATE, f"days, {when.words}", more, when.doubt, when.unit)


def _words(seen: Seen, many: str) -> Guess:
    known = seen.known
    if pc.mean(pc.starts_with(known, "http").cast(pa.float64())).as_py() > 0.5:
        return Guess(None, "holds links, which neither the model nor the language model can read")
    separator = _separator(seen)
    if separator is not None:
        split = pc.split_pattern(known, separator)
        different = len(pc.utf8_trim_whitespace(pc.list_flatten(split)).unique())
        more = {"separator": separator, "max_values": _longest(split)}
        return Guess(Kind.MULTI, f"several values in one, between '{separator}': {different:,} different ones", more)
    share = len(known.unique()) / len(known)
    length = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(known))).as_py()
    if length >= 2 and (share > 0.3 or length >= 6):
        return Guess(Kind.TEXT, f"{length:.0f} words on average, {many} different texts: for the prompt only")
    if share > 0.9 and len(known) >= 100:
        return Guess(None, "has a value of its own in nearly every row, and none of several words")
    return _category(seen, f"{many} different values, such as {', '.join(_common(seen))}")


def _category(seen: Seen, why: str) -> Guess:
    folded = {value.lower(): value for value in _few(seen)}
    more: dict[str, Any] = {}
    if set(folded) <= set(GENDERS) and {"f", "m"} & set(folded):
        more["codes"] = {value: GENDERS[word] for word, value in folded.items()}
    if seen.different is None or seen.different > 50_000:
        more["min_count"] = 2
        why += "; those seen once are taken as unknown"
    return Guess(Kind.CATEGORY, why, more)


def _common(seen: Seen) -> list[str]:
    return [f"'{value}'" for value, _ in Counter(seen.known.to_pylist()).most_common(3)]


def _separator(seen: Seen) -> str | None:
    """What stands between the values of a column that has several: parts are short and come back."""
    known = seen.known
    for separator in SEPARATORS:
        split = pc.split_pattern(known, separator)
        parts = pc.utf8_trim_whitespace(pc.list_flatten(split))
        several = pc.mean(pc.greater(pc.list_value_length(split), 1).cast(pa.float64())).as_py()
        words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(parts))).as_py()
        different = len(parts.unique())
        # The parts of 'Paris, France' do not come back in other company. A bar is hardly ever part of a value.
        strict = separator not in {"|", ";"}
        again = different <= (0.2 if strict else 0.5) * len(parts)
        if several >= 0.1 and words <= 2.5 and again and different < len(known.unique()) + (0 if strict else 10):
            return separator
    return None


def _longest(lists: Any) -> int:
    """Room for the values of nearly all rows."""
    lengths = pc.list_value_length(lists)
    return max(1, min(32, int(pc.quantile(lengths, 0.99, interpolation="higher")[0].as_py() or 1)))

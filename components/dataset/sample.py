"""The embedded sample: impressions drawn from known probabilities, so that the best possible AUC is known.

A shop of books, courses and kits on twelve hobbies. What a user likes follows partly from occupation, city and
age and is partly personal; what an item is about shows in the words of its title and description, and hardly in
its category, tags and maker. Users and items arrive all the time, and items listed late use words that no earlier
item has: only the meaning of the words tells what those are about.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from components.dataset.errors import UserError
from components.run import aside, read_json, write_json

VERSION = 1
SEED = 20_250_301
DAYS = 90
USERS = 2_500
ITEMS = 1_200
IMPRESSIONS = 60_000
FIRST_DAY = np.datetime64("2025-03-01T00:00:00", "us")

#: From this day on newly listed items are described with late words.
LATE_WORDS_FROM = 60
#: Weights of the parts of the logit; together they put the click rate near 0.3 and the best AUC near 0.83.
INTERCEPT, AFFINITY, QUALITY, USER_BIAS, CONTEXT = -1.9, 1.2, 0.7, 0.6, 0.35

DAYPARTS = ("night", "morning", "afternoon", "evening")
DEVICES = ("phone", "desktop", "tablet")

Array = npt.NDArray[Any]
Random = np.random.Generator


@dataclass(frozen=True)
class _Party:
    """Users or items: their table, their arrival (day; negative = before the log), and what the clicks depend on.

    `topics` has the shape [n, topics]: a user's taste or an item's mix; `weight` [n] is how often they appear and
    `shift` [n] what they add to every logit.
    """

    table: pa.Table
    arrival: Array
    topics: Array
    weight: Array
    shift: Array


def ensure(folder: Path) -> Path:
    """Generate the sample in `folder` unless it is there, complete and of this version; returns the folder.

    Raises:
        UserError: the folder cannot be written.
    """
    if _is_complete(folder):
        return folder
    try:
        with _alone(folder):
            if not _is_complete(folder):
                write_sample(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); set TANDEM_DATA to a folder of yours") from None
    return folder


def write_sample(folder: Path) -> None:
    """Generate impressions, users, items and truth as Parquet; the same bytes of data each time, in seconds.

    The four files are built beside `folder` and take its place together. `truth.parquet` holds for each
    impression_id (the row's number in impressions.parquet) the probability that its label was drawn from.
    """
    random = np.random.Generator(np.random.PCG64(SEED))
    users, items = _users(random), _items(random)
    impressions, truth = _impressions(random, users, items)
    tables = {"impressions": impressions, "users": users.table, "items": items.table, "truth": truth}
    with aside(folder) as draft:
        draft.mkdir()
        for name, table in tables.items():
            pq.write_table(table, draft / f"{name}.parquet")
        write_json(draft / "sample.json", {"version": VERSION, "rows": {k: t.num_rows for k, t in tables.items()}})


def bayes_probabilities(folder: Path) -> npt.NDArray[np.float64]:
    """The true click probabilities, shape [impressions], indexed by impression_id. Never an input of a model.

    Raises:
        UserError: there is no sample in the folder.
    """
    path = folder / "truth.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file; write the sample with `tandem data sample`")
    table = pq.read_table(path).sort_by("impression_id")
    return np.asarray(table["probability"].to_numpy(), dtype=np.float64)


def _is_complete(folder: Path) -> bool:
    marker = folder / "sample.json"
    if not marker.is_file():
        return False
    content = read_json(marker)
    return content.get("version") == VERSION and all((folder / f"{n}.parquet").is_file() for n in content["rows"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock, so that of several processes one generates and the others find it done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _words() -> Any:
    return yaml.safe_load(Path(__file__).with_name("sample_topics.yaml").read_text(encoding="utf-8"))


def _topic_names() -> list[str]:
    return list(_words()["topics"])


def _arrivals(random: Random, count: int, early_share: float) -> Array:
    """Whole days: a share was there before the log began, the others come evenly over its days."""
    before = -random.integers(1, 365, count)
    return np.where(random.random(count) < early_share, before, random.integers(0, DAYS, count))


def _moments(days: Array) -> pa.Array:
    """Midnights of the days, UTC."""
    return pa.array(FIRST_DAY + days * np.timedelta64(86_400_000_000, "us")).cast(pa.timestamp("us", tz="UTC"))


def _keys(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:04d}" for number in range(1, count + 1)]


def _users(random: Random) -> _Party:
    words = _words()
    drawn = {name: random.integers(0, len(words[name]), USERS) for name in ("ages", "occupations", "cities")}
    share = {"occupations": 2.0, "cities": 1.1, "ages": 1.1}
    taste = random.normal(0.0, 0.4, (USERS, len(words["topics"])))
    for name, codes in drawn.items():
        taste += share[name] * _likes(words[name])[codes]
    arrival = _arrivals(random, USERS, 0.55)
    table = pa.table(
        {
            "user": _keys("u", USERS),
            "joined_at": _moments(arrival),
            "gender": _with_gaps(random, random.choice(["F", "M"], USERS), 0.05),
            "age_group": np.array(list(words["ages"]))[drawn["ages"]],
            "occupation": np.array(list(words["occupations"]))[drawn["occupations"]],
            "city": _with_gaps(random, np.array(list(words["cities"]))[drawn["cities"]], 0.03),
        }
    )
    activity = random.lognormal(0.0, 0.8, USERS)
    return _Party(table, arrival, taste - taste.mean(axis=1, keepdims=True), activity, random.normal(0, 1, USERS))


def _likes(liked: Mapping[str, Sequence[str]]) -> Array:
    """Matrix [values, topics] that is 1 where a value's topics are."""
    topics = _topic_names()
    return np.array([[float(topic in chosen) for topic in topics] for chosen in liked.values()])


def _with_gaps(random: Random, values: Array, share: float) -> pa.Array:
    return pa.array(values, mask=random.random(len(values)) < share)


def _items(random: Random) -> _Party:
    words, count = _words(), len(_topic_names())
    first = random.integers(0, count, ITEMS)
    second = (first + random.integers(1, count, ITEMS)) % count
    lean = random.uniform(0.65, 0.95, ITEMS)
    mix = np.zeros((ITEMS, count))
    mix[np.arange(ITEMS), first], mix[np.arange(ITEMS), second] = lean, 1 - lean
    arrival = _arrivals(random, ITEMS, 0.45)
    categories = np.array(words["categories"])
    category = categories[_leaning(random, first % len(categories), len(categories), 0.25)]
    makers = np.array(words["makers"])
    maker = makers[_leaning(random, first * 2 + random.integers(0, 2, ITEMS), len(makers), 0.45)]
    price = np.round(random.lognormal(3.0, 0.6, ITEMS), 2)
    texts = [_describe(random, mix[i], category[i], bool(arrival[i] >= LATE_WORDS_FROM)) for i in range(ITEMS)]
    table = pa.table(
        {
            "item": _keys("i", ITEMS),
            "listed_at": _moments(arrival),
            "title": [title for title, _ in texts],
            "category": category,
            "tags": [_tags(random, _topic_names()[topic]) for topic in first],
            "maker": maker,
            "price": pa.array(price, mask=random.random(ITEMS) < 0.02),
            "description": [description for _, description in texts],
        }
    )
    quality = random.normal(0, 1, ITEMS) - 0.5 * (np.log(price) - 3.0) / 0.6
    return _Party(table, arrival, mix, random.lognormal(0.0, 1.4, ITEMS), quality)


def _leaning(random: Random, preferred: Array, count: int, share: float) -> Array:
    """Codes in 0..count-1: the preferred one with the given probability, else any."""
    return np.where(random.random(len(preferred)) < share, preferred, random.integers(0, count, len(preferred)))


def _tags(random: Random, topic: str) -> str:
    """One to three tags, joined by '|'; about every third is drawn from the topic's own."""
    words = _words()
    pools = [words["topics"][topic]["tags"] if random.random() < 0.35 else words["tags"] for _ in range(3)]
    drawn = dict.fromkeys(str(random.choice(pool)) for pool in pools[: random.integers(1, 4)])
    return "|".join(drawn)


def _describe(random: Random, mix: Array, form: str, late: bool) -> tuple[str, str]:
    """Title and description in words of the item's topics; late items mostly use the late words."""
    words = _words()
    drawn: dict[str, str] = {}
    for slot in "abcdefgh":
        pools = words["topics"][_topic_names()[random.choice(len(mix), p=mix)]]
        pool = pools["late"] if late and random.random() < 0.8 else pools["early"]
        drawn[slot] = str(random.choice([word for word in pool if word not in drawn.values()]))
    titled = {"form": form, "A": drawn["f"][0].upper() + drawn["f"][1:]}
    title = str(random.choice(words["titles"])).format(a=drawn["f"], b=drawn["g"], c=drawn["h"], **titled)
    parts = [str(random.choice(words[part])) for part in ("openers", "middles", "closers")]
    return title, " ".join(parts).format(form=form, **drawn)


def _impressions(random: Random, users: _Party, items: _Party) -> tuple[pa.Table, pa.Table]:
    affinity = users.topics @ items.topics.T
    affinity = (affinity - affinity.mean()) / affinity.std()
    pairs = [_shown(random, day, users, items, affinity) for day in range(DAYS)]
    user, item = (np.concatenate(column) for column in zip(*pairs, strict=True))
    seconds, device = _seconds(random), random.choice(3, IMPRESSIONS, p=[0.6, 0.3, 0.1])
    daypart = seconds % 86_400 // 21_600
    logits = INTERCEPT + AFFINITY * affinity[user, item] + USER_BIAS * users.shift[user] + QUALITY * items.shift[item]
    logits += CONTEXT * (np.array([-1, -0.3, 0.2, 1])[daypart] + np.array([-0.3, 0.5, 0.4])[device])
    probability = 1 / (1 + np.exp(-logits))
    shown_at = pa.array(FIRST_DAY + seconds.astype("timedelta64[s]")).cast(pa.timestamp("us", tz="UTC"))
    table = pa.table(
        {
            "user": users.table["user"].take(user),
            "item": items.table["item"].take(item),
            "shown_at": shown_at,
            "clicked": (random.random(IMPRESSIONS) < probability).astype(np.int8),
            "daypart": np.array(DAYPARTS)[daypart],
            "device": np.array(DEVICES)[device],
        }
    )
    return table, pa.table({"impression_id": np.arange(IMPRESSIONS), "probability": probability})


def _per_day() -> list[int]:
    ends = np.linspace(0, IMPRESSIONS, DAYS + 1).round().astype(int)
    return [int(count) for count in np.diff(ends)]


def _seconds(random: Random) -> Array:
    """Seconds since the first day of every impression, ascending; nights are quiet and evenings busy."""
    hours = np.array([1, 0.5, 0.3, 0.3, 0.5, 1, 2, 3, 3, 3, 3, 3, 4, 3, 3, 3, 3, 4, 5, 6, 7, 6, 4, 2])
    days = []
    for day, count in enumerate(_per_day()):
        hour = random.choice(24, count, p=hours / hours.sum())
        days.append(np.sort(day * 86_400 + hour * 3_600 + random.integers(0, 3_600, count)))
    return np.concatenate(days)


def _shown(random: Random, day: int, users: _Party, items: _Party, affinity: Array) -> tuple[Array, Array]:
    """Users and items of a day's impressions: of four popular items a user sees one, more often one to their taste."""
    count = _per_day()[day]
    user = random.choice(len(users.weight), count, p=_presence(users, day))
    offered = random.choice(len(items.weight), (count, 4), p=_presence(items, day))
    liking = 0.5 * affinity[user[:, None], offered] + random.gumbel(size=(count, 4))
    return user, offered[np.arange(count), liking.argmax(axis=1)]


def _presence(party: _Party, day: int) -> Array:
    """How likely each is drawn on this day: none before arrival, newcomers more than later on."""
    age = day - party.arrival
    weight = np.where(age < 0, 0.0, party.weight * (1 + 1.2 * np.exp(-np.maximum(age, 0) / 10)))
    return np.asarray(weight / weight.sum())

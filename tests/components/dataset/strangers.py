"""Three data sets as they come: nothing in them was made for this project."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = 1_709_280_000  # 2024-03-01 08:00 UTC
COLOURS = ("rot", "blau", "grün")


def web_shop(folder: Path, rows: int = 1500, users: int = 60, products: int = 40) -> dict[str, Path]:
    """A click log of nested, packed JSON lines with time stamps in milliseconds; products with a key of another name.

    Who lives in the north clicks on what is cheap. The dwell time is there only after a click, and the session is
    another one in every row.
    """
    draw = np.random.default_rng(11)
    north = draw.random(users) < 0.5
    price = np.round(np.exp(draw.normal(3, 1.2, products)), 2)
    cheap = price < np.median(price)
    lines = []
    for row in range(rows):
        user, product = int(draw.integers(users)), int(draw.integers(products))
        clicked = bool(draw.random() < (0.8 if north[user] == cheap[product] else 0.15))
        lines.append(
            {
                "ts": (START + 240 * row) * 1000 + int(draw.integers(1000)),
                "visitor": {"id": 10_000 + user, "agent": str(draw.choice(["iOS", "Android", "Firefox"]))},
                "product": {"sku": f"P-{product:03d}", "position": int(draw.integers(1, 30))},
                "session": f"{row:08x}-{draw.integers(2**31):x}",
                "clicked": clicked,
                "dwell_ms": int(draw.integers(500, 90_000)) if clicked else None,
                "schema": 3,
                "campaign": None,
            }
        )
    with gzip.open(folder / "events.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    with (folder / "products.ndjson").open("w", encoding="utf-8") as file:
        for product in range(products):
            colours = draw.choice(COLOURS, size=int(draw.integers(1, 3)), replace=False).tolist()
            content = {
                "id": f"P-{product:03d}",
                "title": f"Schöne Lampe Nr. {product} in {colours[0]} für {['den Flur', 'die Küche'][product % 2]}",
                "price": float(price[product]) if product % 9 else None,
                "colours": colours,
                "url": f"https://shop.example/p/{product}",
                "inStock": bool(product % 3),
            }
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
    since = (np.datetime64("2019-05-01") + draw.integers(0, 1500, users)).astype("datetime64[D]")
    customers = {
        "id": np.arange(10_000, 10_000 + users),
        "region": np.where(north, "Nord", "Süd"),
        "customer_since": pa.array(since),
        "birthYear": draw.integers(1950, 2005, users),
    }
    pq.write_table(pa.table(customers), folder / "customers.parquet")
    return {
        "impressions": folder / "events.jsonl.gz",
        "users": folder / "customers.parquet",
        "items": folder / "products.ndjson",
    }


def news(folder: Path, rows: int = 1500, readers: int = 80, articles: int = 50) -> dict[str, Path]:
    """A log of readers in German, tab-separated, without a table of users: 'ja' and 'nein', keywords between commas."""
    draw = np.random.default_rng(12)
    topics = ("Sport", "Politik", "Kultur")
    taste = draw.integers(3, size=readers)
    topic = draw.integers(3, size=articles)
    moment = np.datetime64("2024-03-01T06:00:00")
    lines = ["zeitpunkt\tleser\tartikel\tgelesen\tlesedauer\tgerät"]
    for _ in range(rows):
        reader, article = int(draw.integers(readers)), int(draw.integers(articles))
        moment = moment + np.timedelta64(int(draw.integers(20, 400)), "s")
        read = draw.random() < (0.7 if taste[reader] == topic[article] else 0.2)
        seconds = draw.integers(20, 300) if read else 0
        device = draw.choice(["Händy", "Rechner", ""])
        when = str(moment).replace("T", " ")
        lines.append(f"{when}\tL{reader:05d}\t{article}\t{'ja' if read else 'nein'}\t{seconds}\t{device}")
    (folder / "log.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ("Wahl", "Tor", "Bühne", "Geld", "Stadt", "Spiel")
    rows_of = ["artikel,ressort,schlagwörter,überschrift,veröffentlicht"]
    for article in range(articles):
        keywords = ", ".join(draw.choice(words, size=3, replace=False))
        title = f"Was {topics[topic[article]]} mit „{words[article % 6]}“ zu tun hat, Folge {article}"
        rows_of.append(f'{article},{topics[topic[article]]},"{keywords}","{title}",2024-02-{1 + article % 28:02d}')
    (folder / "artikel.csv").write_text("\ufeff" + "\n".join(rows_of) + "\n", encoding="utf-8")
    return {"impressions": folder / "log.tsv", "items": folder / "artikel.csv"}


def ratings(folder: Path, rows: int = 1500, users: int = 70, books: int = 45) -> dict[str, Path]:
    """Ratings of half points with ';', decimal commas and European dates; names of columns with spaces and umlauts."""
    draw = np.random.default_rng(13)
    good = draw.normal(0, 1, books)
    lines = ["Nutzer-ID;Buch-Nr.;Bewertung;Datum;Rezension"]
    day = np.datetime64("2023-01-01T09:00")
    for _ in range(rows):
        user, book = int(draw.integers(users)), int(draw.integers(books))
        day = day + np.timedelta64(int(draw.integers(5, 120)), "m")
        rating = float(np.clip(np.round(2 * (3 + 1.2 * good[book] + draw.normal(0, 0.7))) / 2, 0.5, 5))
        date = day.item()
        text = "" if rating < 4 else f"Sehr gut, {int(draw.integers(9))} von 9 Punkten; gern wieder"
        quoted = f'"{text}"' if text else ""
        lines.append(
            f"{user};B{book};{rating:.1f};{date:%d.%m.%Y %H:%M};{quoted}".replace(".0;", ",0;").replace(".5;", ",5;")
        )
    (folder / "bewertungen.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["Nr.;Titel;Preis €;Erschienen;Genres;Verlag"]
    for book in range(books):
        price = f"{1000 + book if book % 10 == 0 else 9 + book},{book % 100:02d}"
        genres = "|".join(draw.choice(["Krimi", "Lyrik", "Roman"], size=1 + book % 2, replace=False))
        date = f"{1 + book % 28:02d}.{1 + book % 12:02d}.2012"
        lines.append(f"B{book};Das Buch über Nr. {book} und Müller;{price};{date};{genres};Insel")
    (folder / "bücher.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["Nutzer-ID;Geschlecht;Alter"]
    lines += [f"{user};{'mwd'[int(draw.integers(3))]};{int(draw.integers(14, 90))}" for user in range(users)]
    (folder / "nutzer.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "impressions": folder / "bewertungen.csv",
        "users": folder / "nutzer.csv",
        "items": folder / "bücher.csv",
    }

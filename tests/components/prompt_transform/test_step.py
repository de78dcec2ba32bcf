"""Prompts: the words of the paper, where each value stands, which row reads which text, and what is refused."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.dataset.spec import Kind
from components.models.plm import PlmSpec
from components.prompt_transform.lengths import Tokens
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.step import prompt_hash, prompt_transform
from tests.components.encode.tiny import save_bert
from tests.components.prompt_transform.making import DOCTOR, FIELDS, TERMINATOR, random_rows, row, spec_of, write

FORMS = ["natural", "field-value", "field:value", "nameless-field", "values_only"]
PLAIN = {"plm": None}


def transform(folder, rows, spec=None, valid=None, test=None, **settings):
    write(folder / "data", rows, spec, valid, test)
    report = prompt_transform(folder / "data", folder / "prompts", PromptSettings(**{**PLAIN, **settings}))
    return PromptSet.open(folder / "prompts"), report


def texts_of(prompts):
    return prompts.texts(["text"])["text"].to_pylist()


# --- words -------------------------------------------------------------------------------------------------------


def test_natural_form_is_that_of_the_paper(tmp_path):
    prompts, _ = transform(tmp_path, [row(**DOCTOR, **TERMINATOR)])
    assert texts_of(prompts) == [
        "This is a user, gender is female, and age is 18, and occupation is doctor.",
        "This is a movie, title is The Terminator, genre is Sci-Fi.",
    ]


def test_instance_with_history_is_one_text(tmp_path):
    seen = {"liked_title": ["Heat", "Titanic", "Avatar"], "device": "phone"}
    rows = [row(**DOCTOR, **TERMINATOR, **seen)]
    prompts, _ = transform(tmp_path, rows, granularity="instance", history_items=2)
    assert texts_of(prompts) == [
        "This is a user, gender is female, and age is 18, and occupation is doctor, who has recently watched "
        "Titanic | Avatar. This is a movie, title is The Terminator, genre is Sci-Fi. "
        "In this impression, device is phone."
    ]


@pytest.mark.parametrize(
    ("form", "user", "item"),
    [
        ("field-value", "gender-female, age-18, occupation-doctor.", "title-The Terminator, genre-Sci-Fi."),
        ("field:value", "gender:female, age:18, occupation:doctor.", "title:The Terminator, genre:Sci-Fi."),
        ("nameless-field", "Field-female, Field-18, Field-doctor.", "Field-The Terminator, Field-Sci-Fi."),
        ("values_only", "female, 18, doctor.", "The Terminator, Sci-Fi."),
    ],
)
def test_other_forms_of_the_paper(tmp_path, form, user, item):
    prompts, _ = transform(tmp_path, [row(**DOCTOR, **TERMINATOR)], form=form)
    assert texts_of(prompts) == [user, item]


def test_missing_values_are_skipped(tmp_path):
    prompts, _ = transform(tmp_path, [row(age=25.5), row(title=" ", genres=[])])
    assert texts_of(prompts) == ["This is a user, age is 25.5.", "This is a user.", "This is a movie."]
    prompts, _ = transform(tmp_path / "plain", [row()], form="values_only")
    assert texts_of(prompts) == ["", ""]


def test_several_values_are_joined_cut_to_max_values_and_spelt_out(tmp_path):
    prompts, report = transform(tmp_path, [row(genres=["C", "War", "Drama"]), row(genres=["War"])])
    assert texts_of(prompts)[1:] == ["This is a movie, genre is Comedy, War.", "This is a movie, genre is War."]
    assert report["unspoken_codes"] == {"genres": ["Drama", "War"]}


def naive_text(values, spec, items):
    """One row's natural text, clause by clause."""

    def value(field):
        found = values[field.table_column]
        if field.kind is Kind.MULTI:
            found = ", ".join(field.codes.get(v, v) for v in (found or [])[: field.max_values])
        if isinstance(found, float):
            found = str(int(found)) if found == int(found) else str(found)
        return " ".join(field.codes.get(found, found).split()) if found else None

    sentences = []
    for side, opener, between in (("user", "This is a user", ", and "), ("item", "This is a movie", ", ")):
        said = [(f.spoken, value(f)) for f in spec.of_side(side) if f.in_prompt]
        clauses = between.join(f"{name} is {word}" for name, word in said if word)
        text = opener + (f", {clauses}" if clauses else "")
        titles = [title for title in values["liked_title"] or [] if title]
        if side == "user" and titles:
            text += f", who has recently watched {' | '.join(titles[-items:])}"
        sentences.append(text + ".")
    device = value(spec.field("device"))
    sentences.append(f"In this impression, device is {device}." if device else "In this impression.")
    return " ".join(sentences)


def test_vectorised_texts_equal_naive_ones(tmp_path):
    rows = random_rows(400)
    prompts, report = transform(tmp_path, rows, granularity="instance", history_items=3)
    texts = texts_of(prompts)
    found = [texts[i] for i in prompts.index("train")["row_text"]]
    assert found == [naive_text(values, spec_of(), 3) for values in rows]
    assert len(set(texts)) == len(texts) == report["texts"]["row"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", ["entity", "instance"])
def test_spans_hold_the_values(tmp_path, form, granularity):
    rows = random_rows(60)
    prompts, _ = transform(tmp_path, rows, form=form, granularity=granularity)
    table = prompts.texts().to_pylist()
    jobs = {None, "doctor", "tab and break", "painter"}
    for text in table:
        spans = text["spans"]
        assert all(0 <= s["start"] < s["end"] <= len(text["text"]) for s in spans)
        assert [s["start"] for s in spans] == sorted(s["start"] for s in spans)
        said = {s["field"]: text["text"][s["start"] : s["end"]] for s in spans}
        assert said.get("job") in jobs and said.get("gender") in {None, "female", "male", "X"}
        assert said.get("age") in {None, "18", "25.5", "10000000"}
        assert "history" not in said or granularity == "instance"
        if form == "natural" and "title" in said:
            assert f"title is {said['title']}" in text["text"]
    every = {s["field"] for text in table for s in text["spans"]}
    assert every >= {"gender", "age", "job", "title", "genres"}


# --- index and hashes --------------------------------------------------------------------------------------------


def test_texts_are_unique_hashed_and_indexed_by_part(tmp_path):
    young, old = row(user=1, age=18.0, **TERMINATOR), row(user=1, age=19.0, title="Alien")
    prompts, report = transform(tmp_path, [young, old, young], valid=[old], test=[row(title="Alien")])
    table = prompts.texts().to_pylist()
    assert [t["side"] for t in table] == ["user"] * 3 + ["item"] * 2
    assert all(t["hash"] == hashlib.sha256(t["text"].encode()).hexdigest() for t in table)
    # The same user has two texts: the table of users is time-stamped, and the age changed.
    assert prompts.index("train")["user_text"].tolist() == [0, 1, 0]
    assert prompts.index("train")["item_text"].tolist() == [3, 4, 3]
    assert prompts.index("valid")["user_text"].tolist() == [1]
    assert prompts.index("test")["user_text"].tolist() == [2]
    assert prompts.index("test")["item_text"].tolist() == [4]
    assert report["rows"] == {"train": 3, "valid": 1, "test": 1}
    assert report["texts"] == {"user": 3, "item": 2}


def test_chunks_of_rows_give_the_same_prompts(tmp_path, monkeypatch):
    rows = random_rows(50)
    whole, report = transform(tmp_path / "whole", rows, granularity="instance")
    monkeypatch.setattr("components.prompt_transform.step.ROWS", 7)
    pieces, again = transform(tmp_path / "pieces", rows, granularity="instance")
    assert pieces.texts().equals(whole.texts()) and again == report
    assert pieces.index("train")["row_text"].tolist() == whole.index("train")["row_text"].tolist()


def test_prompt_hash_follows_the_words_and_nothing_else():
    spec, settings = spec_of(), PromptSettings()
    first = prompt_hash(spec, settings)
    assert first == prompt_hash(spec_of(split={"by": "hash"}, max_unknown_share=0.1), settings)
    changes = [{"form": "values_only"}, {"granularity": "instance"}, {"history_items": 2}, {"max_tokens": 64}, PLAIN]
    hashes = {prompt_hash(spec, PromptSettings(**change)) for change in changes}
    worded = [{**FIELDS[1], "codes": {"F": "woman"}}, *FIELDS[2:]]
    hashes |= {prompt_hash(spec_of(fields=[FIELDS[0], *worded]), settings)}
    hashes |= {
        prompt_hash(spec_of(prompt={"user": "A person"}), settings),
        prompt_hash(spec_of(history=False), settings),
    }
    assert len(hashes | {first}) == len(changes) + 4


def test_report_says_what_is_covered_and_left_out(tmp_path):
    prompts, report = transform(tmp_path, [row(gender="F", device="phone"), row(genres=[])])
    # Four rows: the first one stands in the other two parts as well.
    assert report["coverage"] == {"gender": 0.75, "age": 0, "job": 0, "title": 0, "genres": 0}
    assert report["left_out"] == ["device"]
    assert prompts.meta["prompt_hash"] == report["prompt_hash"] == prompts.report["prompt_hash"]
    assert prompts.meta["granularity"] == "entity" and prompts.meta["form"] == "natural"
    assert report["tokens"] == {} and report["tokenizer"] is None
    assert report["examples"]["user"] == ["This is a user, gender is female.", "This is a user."]


# --- lengths -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return {"plm": {"name": str(save_bert(tmp_path_factory.mktemp("plm") / "bert"))}}


def tokens_in(bert, text):
    return int(Tokens.of(PlmSpec(**bert["plm"])).count([text])[0])


def test_token_lengths_are_counted(tmp_path, bert):
    prompts, report = transform(tmp_path, [row(**DOCTOR, **TERMINATOR), row()], **bert)
    texts = texts_of(prompts)
    counts = [tokens_in(bert, text) for text in texts]
    assert report["tokens"]["user"]["max"] == max(counts[:2]) and report["tokens"]["item"]["max"] == max(counts[2:])
    assert sum(report["tokens"]["user"]["histogram"]["counts"]) == 2
    assert report["truncated"]["user"] == {"texts": 0, "rate": 0.0, "fields": {}}
    assert report["shortened_histories"] is None


def test_long_texts_are_cut_at_a_whole_token_and_reported(tmp_path, bert):
    rows = [row(title="movie", genres=[" ".join(["drama"] * 40)]), row(title="movie")]
    prompts, report = transform(tmp_path, rows, max_tokens=16, **bert)
    whole, short = (text for text in prompts.texts().to_pylist() if text["side"] == "item")
    assert tokens_in(bert, whole["text"]) == 16 and whole["text"].endswith(" drama")
    assert whole["spans"][-1]["field"] == "genres" and whole["spans"][-1]["end"] == len(whole["text"])
    assert short["text"] == "This is a movie, title is movie."
    assert report["truncated"]["item"] == {"texts": 1, "rate": 0.5, "fields": {"genres": 1}}
    assert report["truncated"]["user"]["texts"] == 0


def test_history_gives_way_before_the_item_does(tmp_path, bert):
    titles = ["titanic", "avatar one two three", "terminator", "comedy"]
    rows = [row(**DOCTOR, **TERMINATOR, liked_title=titles)]
    asked = {"granularity": "instance", "history_items": 10, **bert}
    whole, _ = transform(tmp_path / "whole", rows, **asked)
    tokens = tokens_in(bert, texts_of(whole)[0])
    short, report = transform(tmp_path / "short", rows, max_tokens=tokens - 3, **asked)
    assert (
        "watched terminator | comedy. This is a movie, title is The Terminator, genre is Sci-Fi." in texts_of(short)[0]
    )
    assert report["truncated"]["row"]["texts"] == 0
    assert report["tokens"]["row"]["max"] == tokens_in(bert, texts_of(short)[0])
    # The one row stands in all three parts.
    assert report["shortened_histories"] == {"rows": 3, "titles": 6, "rate": 1.0}
    assert whole.report["shortened_histories"] == {"rows": 0, "titles": 0, "rate": 0.0}


def test_sums_over_pieces_are_used_only_where_they_are_right(bert):
    tokens = Tokens.of(PlmSpec(**bert["plm"]))
    first, second = pa.array(["this is a user.", "age"]), pa.array(["this is a movie.", "genre"])
    joined = ["this is a user. this is a movie.", "age genre"]
    assert tokens.together([first, second]).tolist() == tokens.count(joined).tolist()
    wrong = np.array([1, 1])
    assert tokens.count(joined, estimate=wrong).tolist() == tokens.count(joined).tolist()


# --- what is refused ---------------------------------------------------------------------------------------------


def with_field(**field):
    return spec_of(fields=[*FIELDS, field])


def test_column_that_repeats_the_label_is_refused_by_name(tmp_path):
    spec = with_field(name="stars", side="context", kind="category")
    rows = [row(label=i % 2, stars="5" if i % 2 else "1") for i in range(80)]
    with pytest.raises(UserError, match="field 'stars' tells the label of every row"):
        transform(tmp_path, rows, spec, test=rows)
    rows[0]["stars"] = "5"
    transform(tmp_path / "honest", rows, spec)


def test_rare_values_are_not_taken_for_a_leak(tmp_path):
    spec = with_field(name="session", side="context", kind="category")
    transform(tmp_path, [row(label=i % 2, session=str(i)) for i in range(80)], spec)


def test_label_column_under_another_name_is_refused(tmp_path):
    table = {"path": "impressions.csv"}
    sources = {"impressions": table, "users": {"path": "users.csv"}, "items": table}
    leak = {"name": "stars", "side": "item", "kind": "category", "column": "rating"}
    spec = spec_of(fields=[*FIELDS, leak], sources=sources)
    with pytest.raises(UserError, match="field 'stars' reads 'rating', from which the label is derived"):
        transform(tmp_path, [row(stars="5"), row(stars="5", label=1)], spec)
    # A column of that name in another table is another thing: an item's own mean rating.
    transform(tmp_path / "own", [row(stars="5")], spec_of(fields=[*FIELDS, leak]))


def test_field_known_after_the_impression_is_refused(tmp_path):
    late = {**FIELDS[5], "known_after_impression": True}
    spec = spec_of(fields=[*FIELDS[:5], late, *FIELDS[6:]])
    with pytest.raises(UserError, match="field 'title' is known only after the impression"):
        transform(tmp_path, [row(**TERMINATOR)], spec)


def test_bytes_that_are_not_utf8_are_refused_by_field(tmp_path):
    write(tmp_path / "data", [row(job="doctor")])
    path = tmp_path / "data" / "train.parquet"
    table = pq.read_table(path)
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(table.set_column(table.column_names.index("job"), "job", broken), path)
    with pytest.raises(UserError, match="field 'job': not valid UTF-8"):
        prompt_transform(tmp_path / "data", tmp_path / "prompts", PromptSettings(**PLAIN))


def test_settings_refuse_what_they_do_not_know(tmp_path):
    for wrong in ({"form": "poem"}, {"granularity": "row"}, {"max_tokens": 0}, {"histroy_items": 3}):
        with pytest.raises(ValidationError):
            PromptSettings(**wrong)
    with pytest.raises(UserError, match=r"plm\.name: no folder"):
        transform(tmp_path, [row()], plm={"name": "/no/such/plm"})

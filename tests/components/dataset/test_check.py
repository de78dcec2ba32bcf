"""All that is wrong is told at once, each with its place and what to write."""

import pytest
import yaml

from components.dataset.check import check
from tests.components.dataset.making import FIELDS, IMPRESSIONS, ITEMS, USERS, content, write_sources


def found(folder, **changes):
    """What is found in a spec over the sources in `folder`, by the last part of the place: file or file:line."""
    (folder / "films.yaml").write_text(yaml.safe_dump(content(**changes), sort_keys=False), encoding="utf-8")
    return [(one.severity, one.where.split("/")[-1], one.what) for one in check(str(folder / "films.yaml")).findings]


def repeated(rows=200):
    """Impressions in which the device says nothing of the rating."""
    lines = ["uid,mid,ts,rating,device"]
    lines += [f"{n % 3 + 1},{10 * (n % 2 + 1)},{n},{1 + 4 * (n % 2)},{'ab'[n // 2 % 2]}" for n in range(rows)]
    return "\n".join(lines) + "\n"


def test_a_sound_data_set(tmp_path):
    write_sources(tmp_path, impressions=repeated())
    fields = [field for field in FIELDS if field["name"] not in {"genres", "title"}]
    assert found(tmp_path, fields=fields) == []


def test_faults_of_the_spec_and_of_every_file_come_together(tmp_path):
    write_sources(
        tmp_path,
        impressions=IMPRESSIONS.replace("300", "soon").replace("device", "gadget"),
        users=USERS.replace("41", "old"),
        items=ITEMS.replace("20,", "10,"),
    )
    fields = [*FIELDS, {"name": "Größe", "side": "item", "kind": "category"}, {"name": "x", "side": "itm"}]
    said = found(tmp_path, fields=fields, colour="red", split={"ratios": [1, 1, 1]}, history={"fields": ["gnres"]})
    assert {severity for severity, _, _ in said} == {"error"}
    places = {where.split(":")[0] for _, where, _ in said}
    assert places == {"films.yaml", "impressions.csv", "users.csv", "items.csv"}
    everything = "\n".join(f"{where} {what}" for _, where, what in said)
    for words in (
        "unknown key 'colour'; remove it or correct its spelling",
        "'Größe' is no name; write lower-case letters",
        "fields.8.side: Input should be 'user', 'item' or 'context'",
        "key 'fields.8.kind' is missing; add it",
        "split.ratios must be three positive numbers",
        "history names unknown item fields: gnres",
        "impressions.csv no column 'device'; the columns are uid, mid, ts, rating, gadget",
        "impressions.csv column 'ts' holds 'soon' in row 3",
        "users.csv column 'age' holds 'old' in row 3",
        "items.csv column 'mid' has keys in more than one row",
    ):
        assert words in everything, words
    assert len(said) == 10


def test_each_fault_of_a_spec_has_its_line(tmp_path):
    write_sources(tmp_path)
    said = found(tmp_path, colour="red")
    lines = (tmp_path / "films.yaml").read_text().splitlines()
    ((_, where, _),) = [one for one in said if "colour" in one[2]]
    assert lines[int(where.split(":")[1]) - 1] == "colour: red"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"moment": ["hour", "month"]}, "moment.1: Input should be 'hour' or 'weekday'"),
        ({"activity": {"windows": ["1h", "2 weeks"]}}, "activity.windows.1: '2 weeks' is no window; write a number"),
        ({"split": {"ratios": [0.8, 0.2]}}, "key 'split.ratios.2' is missing; add it"),
        ({"name": "My Films"}, "name: 'My Films' is no name; write lower-case letters"),
    ],
)
def test_a_fault_within_the_spec_hides_none_of_the_files(tmp_path, changes, said):
    """An item of a list, a key that a mapping cannot be without, the name of all."""
    write_sources(tmp_path, users=USERS.replace("41", "old"), items=ITEMS.replace("20,", "10,"))
    everything = [f"{where} {what}" for _, where, what in found(tmp_path, **changes)]
    words = (said, "users.csv column 'age' holds 'old'", "items.csv column 'mid' has keys in more than one row")
    for part in words:
        assert any(part in line for line in everything), (part, everything)
    assert len(everything) == len(words), everything


def test_what_follows_from_a_part_that_was_left_out_is_no_fault(tmp_path):
    """A history that names a field with a fault names a field that is there."""
    write_sources(tmp_path, impressions=repeated())
    fields = [field | ({"kind": "txt"} if field["name"] == "title" else {}) for field in FIELDS]
    said = found(tmp_path, fields=fields, history={"title": "title"})
    assert [what for severity, _, what in said if severity == "error"] == [
        "fields.5.kind: Input should be 'id', 'category', 'multi', 'number', 'date' or 'text'"
    ]


def test_files_are_looked_at_although_a_key_is_missing(tmp_path):
    write_sources(tmp_path)
    (tmp_path / "users.csv").unlink()
    (tmp_path / "films.yaml").write_text(yaml.safe_dump({k: v for k, v in content().items() if k != "label"}))
    said = [str(one) for one in check(str(tmp_path / "films.yaml")).findings]
    assert len(said) == 2
    assert said[0].endswith("films.yaml: key 'label' is missing; add it")
    assert said[1].endswith("users.csv: no such file; correct 'path' under 'sources'")


def test_what_is_no_yaml_and_no_file(tmp_path):
    (tmp_path / "a.yaml").write_text("name: [")
    assert "not valid YAML" in str(check(str(tmp_path / "a.yaml")).findings[0])
    assert "no such file" in str(check(str(tmp_path / "b.yaml")).findings[0])


def test_a_split_that_leaves_a_part_empty(tmp_path):
    write_sources(tmp_path, impressions="\n".join(ONE_MOMENT))
    ((where, what),) = [one[1:] for one in found(tmp_path) if one[0] == "error"]
    assert "split by time needs three different moments" in what
    assert where.startswith("films.yaml")


ONE_MOMENT = ["uid,mid,ts,rating,device", *(f"{n % 3 + 1},10,7,{1 + 4 * (n % 2)},a" for n in range(20))]


def test_leaking_and_useless_fields_are_warned_of(tmp_path):
    lines = repeated(400).splitlines()
    noise = [(7 * n) % 13 for n in range(400)]
    extra = ["dwell,empty,own,noise"]
    extra += [f"{5 + n % 2 * 30 + noise[n]},,{n},{noise[n]}" for n in range(400)]
    write_sources(tmp_path, impressions="\n".join(f"{a},{b}" for a, b in zip(lines, extra, strict=True)))
    context = [
        {"name": name, "side": "context", "kind": kind}
        for name, kind in (("dwell", "number"), ("empty", "category"), ("own", "category"), ("noise", "number"))
    ]
    said = found(tmp_path, fields=[*FIELDS, *context])
    by_field = {what.split("'")[1]: what for severity, _, what in said if severity == "warning"}
    assert "alone tells the label with AUC 1.000" in by_field["dwell"]
    assert "known_after_impression: true" in by_field["dwell"]
    assert "is empty; leave it out" in by_field["empty"]
    assert "has a value of its own in 100% of the rows" in by_field["own"]
    assert not {"noise", "device", "age", "job"} & set(by_field)
    kept = [field | ({"known_after_impression": True} if field["name"] == "dwell" else {}) for field in context]
    assert not any("dwell" in what for _, _, what in found(tmp_path, fields=[*FIELDS, *kept]))

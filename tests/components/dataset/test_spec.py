import pytest
import yaml

from components.dataset.errors import UserError
from components.dataset.spec import parse_rule, parse_spec, read_spec
from tests.components.dataset.making import FIELDS, content, spec_of


def fails(message, **changes):
    with pytest.raises(UserError, match=message):
        spec_of(**changes)


def with_field(**field):
    return [*FIELDS, {"name": "extra", "side": "context", "kind": "category", **field}]


def test_yaml_round_trip(tmp_path):
    (tmp_path / "spec.yaml").write_text(spec_of("/data").to_yaml(), encoding="utf-8")
    assert read_spec(tmp_path / "spec.yaml") == spec_of("/data")


def test_digest_is_about_the_content_and_not_the_place():
    assert spec_of("/here").digest == spec_of("/there", description="moved").digest
    assert spec_of(max_unknown_share=0.1).digest != spec_of().digest


def test_relative_paths_start_at_the_file_or_at_the_given_root(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(content("in")))
    assert read_spec(path).sources.users.path == str(tmp_path / "in" / "users.csv")
    assert read_spec(path, root=tmp_path / "data").sources.users.path == str(tmp_path / "data" / "in" / "users.csv")
    path.write_text(yaml.safe_dump(content("s3://bucket")))
    assert read_spec(path).sources.users.path == "s3://bucket/users.csv"


def test_codes_may_be_written_as_numbers():
    spec = spec_of(fields=with_field(codes={0: "other", 1: "doctor"}))
    assert spec.field("extra").codes == {"0": "other", "1": "doctor"}


def test_fields_known_after_the_impression_are_no_input():
    field = spec_of(fields=with_field(known_after_impression=True)).field("extra")
    assert (field.in_model, field.in_prompt) == (False, False)
    fails("known only after the impression", fields=with_field(known_after_impression=True, prompt=True))


def test_faults_are_named():
    fails("films.yaml: unknown key 'colour'; remove it or correct its spelling", colour="red")
    fails("unknown key 'fields.7.kin'", fields=with_field(kin="x"))
    fails("field named twice: age", fields=with_field(name="age"))
    fails("field name 'label' is reserved", fields=with_field(name="label"))
    fails("reads the label's column 'rating'", fields=with_field(column="rating"))
    fails("split.ratios must be three positive numbers", split={"ratios": [0.5, 0.5, 0.5]})
    fails("label rule 'big' is not understood", label={"column": "rating", "positive": "big"})
    fails("history names unknown item fields: age", history={"fields": ["age"]})
    fails("activity.windows holds a value twice: 1h, 1h", activity={"windows": ["1h", "1h"]})
    fails("activity.windows.0: '1 hour' is no window; write a number", activity={"windows": ["1 hour"]})
    twice = with_field(name="item_positives_1h")
    fails("field named twice: item_positives_1h", fields=twice, activity={"windows": ["1h"]})
    fails("history names unknown context fields: age", history={"behaviour": ["age"]})
    hour = with_field(name="hour", side="context")
    fails("history has a 'hour' of its own for each event", fields=hour, history={"behaviour": ["hour"]})
    words = with_field(side="context", kind="text")
    fails("history.behaviour names text fields: extra", fields=words, history={"behaviour": ["extra"]})
    with pytest.raises(UserError, match="key 'label' is missing; add it"):
        parse_spec({key: value for key, value in content().items() if key != "label"}, "films.yaml")


def test_activity_adds_numbers_to_the_model_and_not_to_the_prompt():
    spec = spec_of(activity={"windows": ["30m", "7d"], "sides": ["item"], "buckets": 4})
    added = [field.name for field in spec.model_fields_of("item") if field not in spec.fields]
    assert added == [
        f"item_{name}_{w}" for w in ("30m", "7d") for name in ("impressions", "positives", "positive_rate")
    ]
    assert {(field.kind, field.buckets) for field in spec.activity_fields()} == {("number", 4)}
    assert spec.model_fields_of("user") == spec_of().model_fields_of("user")


def test_what_the_label_is_derived_from_is_for_past_events_only():
    rating = with_field(side="context", column="rating", known_after_impression=True)
    spec = spec_of(fields=rating, history={"behaviour": ["extra"]})
    assert not spec.field("extra").in_model
    assert not spec.field("extra").in_prompt


def test_time_stamps():
    keys = {"user": "uid", "item": "mid"}
    fails("without 'keys.timestamp' there is no time split", keys=keys)
    sources = content()["sources"]
    dated = {**sources, "users": {"path": "users.csv", "timestamp": "since"}}
    fails(
        "'sources.users.timestamp' needs the moment of each impression", keys=keys, split={"by": "hash"}, sources=dated
    )
    assert spec_of(sources=dated).sources.users.timestamp == "since"
    moved = {**sources, "impressions": {"path": "impressions.csv", "timestamp": "when"}}
    fails("an impression's moment is named under 'keys.timestamp'", sources=moved)


def test_only_what_is_dated_expires():
    sources = content()["sources"]
    dated = {"path": "users.csv", "timestamp": "since", "ttl_days": 0.5}
    assert spec_of(sources={**sources, "users": dated}).sources.users.ttl_days == 0.5
    undated = {**sources, "users": {"path": "users.csv", "ttl_days": 1}}
    fails("'sources.users.ttl_days' is for user and item tables with a 'timestamp'", sources=undated)
    impressions = {**sources, "impressions": {**sources["impressions"], "ttl_days": 1}}
    fails("'sources.impressions.ttl_days' is for user and item tables", sources=impressions)
    fails("greater than 0", sources={**sources, "users": {**dated, "ttl_days": 0}})


@pytest.mark.parametrize(
    ("rule", "parsed"),
    [("> 3", (">", 3.0)), ("<=-1.5", ("<=", -1.5)), ("== click", ("==", "click")), (" != a b ", ("!=", "a b"))],
)
def test_rules(rule, parsed):
    assert parse_rule(rule) == parsed


@pytest.mark.parametrize("rule", ["3", "> click", "=> 3", "==", ""])
def test_rules_that_are_none(rule):
    with pytest.raises(ValueError, match="label rule"):
        parse_rule(rule)


def test_files_that_are_no_spec(tmp_path):
    path = tmp_path / "spec.yaml"
    with pytest.raises(UserError, match="no such file"):
        read_spec(path)
    for data, message in ((b"a: [", "not valid YAML"), (b"- a\n", "is a YAML mapping"), (b"a: \xe9", "not valid YAML")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_spec(path)


def test_tabs_and_blanks_count_where_they_separate(tmp_path):
    sources = {**content()["sources"], "users": {"path": "users.csv", "delimiter": "\t"}}
    spec = spec_of(sources=sources, fields=with_field(kind="multi", separator=" "))
    assert spec.sources.users.delimiter == "\t"
    assert spec.field("extra").separator == " "
    fails(
        "delimiter: String should have at most 1 character", sources={"impressions": {"path": "a", "delimiter": "::"}}
    )

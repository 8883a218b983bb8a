"""Settings: which source overrides which, and how a mistake is reported."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import UsageError
from streamproc.settings import Settings, known_keys, load_settings


def write(folder, text):
    """Write a settings file, and return its path."""
    path = folder / "streamproc.yml"
    path.write_text(text)
    return path


def test_flags_override_the_environment_the_file_and_the_defaults(tmp_path, monkeypatch) -> None:
    """Flags win over the environment, that over the file, and that over the defaults."""
    path = write(
        tmp_path,
        "clustering: {similarity_threshold: 0.1, num_best_crops: 1}\ntop_persons: 1\nthreads: 1\n",
    )
    monkeypatch.setenv("STREAMPROC_CLUSTERING__SIMILARITY_THRESHOLD", "0.2")
    monkeypatch.setenv("STREAMPROC_TOP_PERSONS", "2")
    settings = load_settings(
        {"clustering.similarity_threshold": 0.3, "top_persons": None}, config_file=path
    )
    assert settings.clustering.similarity_threshold == 0.3
    assert settings.top_persons == 2
    assert (settings.threads, settings.clustering.num_best_crops) == (1, 1)
    assert settings.min_track_frames == 5


def test_the_section_of_the_pipeline_before_is_understood(tmp_path) -> None:
    """The section of an earlier pipeline's file is read."""
    path = write(
        tmp_path,
        "clustering: {enabled: true, osnet_model: w.onnx, device: cpu, num_best_crops: 8, "
        "similarity_threshold: 0.7}",
    )
    assert load_settings({}, config_file=path).clustering.osnet_model == "w.onnx"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "clustering: {similarity_treshold: 0.8}",
            "did you mean 'clustering.similarity_threshold'",
        ),
        ("treads: 1", "did you mean 'threads'"),
        ("similarity_threshold: 0.8", "did you mean 'clustering.similarity_threshold'"),
        (
            "clustering: {device: gpu}",
            "setting clustering.device: input should be 'auto', 'cpu' or 'cuda', got 'gpu'",
        ),
        ("clustering: {similarity_threshold: .nan}", "clustering.similarity_threshold"),
        ("threads: many", "setting threads"),
        ("clustering: 5", "expected clustering to hold keys and values, got 5"),
        ("- a", "expected keys and values"),
        ("a: [", "expected YAML"),
        ("1: 2", "expected keys and values"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(tmp_path, text, expected) -> None:
    """A mistake in the file is a usage error of one line that names the key."""
    with pytest.raises(UsageError) as caught:
        load_settings({}, config_file=write(tmp_path, text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path) -> None:
    """A missing settings file is a usage error."""
    with pytest.raises(UsageError, match="expected a settings file"):
        load_settings({}, config_file=tmp_path / "none.yml")


def test_a_mistyped_variable_is_named_with_the_nearest(monkeypatch) -> None:
    """A misspelt environment variable is refused with the nearest right one."""
    monkeypatch.setenv("STREAMPROC_CLUSTERING__NUM_BEST_CROP", "8")
    with pytest.raises(UsageError, match="did you mean STREAMPROC_CLUSTERING__NUM_BEST_CROPS"):
        load_settings({}, config_file=None)


def test_a_bad_value_in_the_environment_is_named(monkeypatch) -> None:
    """A wrong value in the environment is refused with its key."""
    monkeypatch.setenv("STREAMPROC_CROPS_PER_PERSON", "0")
    with pytest.raises(UsageError, match="setting crops_per_person"):
        load_settings({}, config_file=None)


@given(st.text(max_size=200))
def test_any_text_as_a_file_gives_settings_or_one_line(tmp_path_factory, text) -> None:
    """Any text as a settings file gives settings or an error of one line."""
    path = tmp_path_factory.mktemp("fuzz") / "s.yml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        load_settings({}, config_file=path)
    except UsageError as error:
        assert "\n" not in str(error)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from([*known_keys(), "x"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(sorted({*Settings.model_fields, "clustering", "x"})), json_like, max_size=4
    )
)
def test_any_values_give_settings_or_one_line(tmp_path_factory, values) -> None:
    """Any values for the keys give settings or an error of one line."""
    import yaml

    path = tmp_path_factory.mktemp("fuzz") / "s.yml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    try:
        load_settings({}, config_file=path)
    except UsageError as error:
        assert "\n" not in str(error)

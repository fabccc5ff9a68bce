"""The licence that a student inherits."""

from huggingface_hub import ModelCard

from singer_hf.release import inherited_license


def model(folder, license):
    folder.mkdir()
    ModelCard(f"---\n{license}\n---\n# A model\n").save(folder / "README.md")
    return str(folder), None


def test_the_teachers_licence_is_inherited(tmp_path):
    found = inherited_license({"teacher": model(tmp_path / "a", "license: apache-2.0")})
    assert (found.id, found.reason) == ("apache-2.0", "inherited from its teacher")
    named = "license: other\nlicense_name: dinov3\nlicense_link: https://example.org"
    found = inherited_license({"teacher": model(tmp_path / "b", named)})
    assert (found.id, found.name, found.link) == ("other", "dinov3", "https://example.org")


def test_where_it_is_not_known_the_reason_is_told(tmp_path):
    assert inherited_license({}).id is None
    (tmp_path / "bare").mkdir()
    assert "no card in its folder" in inherited_license({"teacher": (str(tmp_path / "bare"), None)}).reason
    assert "names none" in inherited_license({"teacher": model(tmp_path / "none", "tags: [x]")}).reason
    (tmp_path / "none" / "README.md").write_text("---\n[1, 2]\n---\n")
    assert "could not be read" in inherited_license({"teacher": (str(tmp_path / "none"), None)}).reason
    assert "could not be read" in inherited_license({"teacher": ("user/not-on-the-hub", None)}).reason  # offline


def test_two_licences_are_not_chosen_between(tmp_path):
    sources = {
        "teacher": model(tmp_path / "a", "license: mit"),
        "origin": model(tmp_path / "b", "license: apache-2.0"),
    }
    found = inherited_license(sources)
    assert found.id is None and "mit (teacher), apache-2.0 (origin)" in found.reason
    same = {"teacher": sources["teacher"], "origin": model(tmp_path / "c", "license: mit")}
    assert inherited_license(same).id == "mit"

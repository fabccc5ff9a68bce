"""The licence that a student inherits."""

import pytest
from huggingface_hub import HfApi, ModelCard

from singer_hf.release import License, PublishError, inherited_license, stated_license


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
    assert "it has no card" in inherited_license({"teacher": (str(tmp_path / "bare"), None)}).reason
    assert "names none" in inherited_license({"teacher": model(tmp_path / "none", "tags: [x]")}).reason


def test_a_card_that_could_not_be_looked_at_is_not_one_without_licence(online, tmp_path, waits):
    folder, _ = model(tmp_path / "none", "tags: [x]")
    (tmp_path / "none" / "README.md").write_text("---\n[1, 2]\n---\n")
    with pytest.raises(PublishError, match="cannot be read, .*name the licence yourself"):
        inherited_license({"teacher": (folder, None)})
    with pytest.raises(PublishError, match="could not be had from the Hub"):
        inherited_license({"teacher": ("user/not-there", None)})
    HfApi(endpoint=online.url, token=online.token).create_repo("user/teacher")
    teacher = {"teacher": ("user/teacher", None)}
    assert "it has no card" in inherited_license(teacher, online.token).reason
    for fault in ({"status": 500}, {"way": "cut"}):
        online.faults.clear()
        online.fail("HEAD /user/teacher", times=99, **fault)
        with pytest.raises(PublishError, match="could not be had from the Hub"):
            inherited_license(teacher, online.token)


def test_a_licence_that_differs_from_the_teachers_is_told(tmp_path, caplog):
    sources = {"teacher": model(tmp_path / "a", "license: cc-by-nc-4.0")}
    stated = License("mit", "as its author states")
    assert stated_license(stated, sources).sources == {"teacher": "cc-by-nc-4.0"}
    assert "is to be mit, but that of its teacher is cc-by-nc-4.0" in caplog.text
    caplog.clear()
    assert stated_license(License("cc-by-nc-4.0", ""), sources).id == "cc-by-nc-4.0" and caplog.text == ""
    assert stated_license(stated, {"teacher": ("user/not-there", None)}) == stated  # offline
    assert "was not looked at" in caplog.text


def test_two_licences_are_not_chosen_between(tmp_path):
    sources = {
        "teacher": model(tmp_path / "a", "license: mit"),
        "origin": model(tmp_path / "b", "license: apache-2.0"),
    }
    found = inherited_license(sources)
    assert found.id is None and "mit (teacher), apache-2.0 (origin)" in found.reason
    same = {"teacher": sources["teacher"], "origin": model(tmp_path / "c", "license: mit")}
    assert inherited_license(same).id == "mit"

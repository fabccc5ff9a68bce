"""examples/push_to_hub.py as users run it."""

import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from released import example_images, result_of

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from push_to_hub import main


@pytest.fixture
def logged_in(online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", online.token)
    return online


def test_a_dry_run_shows_files_and_card_and_sends_nothing(logged_in, run, exported, tmp_path, capsys):
    result_of(exported.fingerprint).save(tmp_path / "pets.json")
    example_images()[0].save(tmp_path / "norms.png")
    options = ["--results", str(tmp_path / "pets.json"), "--pictures", f"{tmp_path}/norms.png=Norms", "--dry_run"]
    main(["--run", str(run), "--repo_id", "user/student", *options, "--output_dir", str(tmp_path / "kept")])
    shown = capsys.readouterr().out
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "images/norms.png"):
        size = (tmp_path / "kept" / "student" / name).stat().st_size
        assert f"{size:>14,} bytes  {name}" in shown
    assert "# student" in shown and "75.00 %" in shown and "![Norms](images/norms.png)" in shown
    assert shown.rstrip().endswith("Dry run: nothing was sent.")
    assert not [request for request in logged_in.requests if not request.startswith("GET")] and not logged_in.repos


def test_a_dry_run_without_token_says_that_it_did_not_look(online, run, capsys):
    main(["--run", str(run), "--repo_id", "user/student", "--dry_run"])
    assert "What is on the Hub was not looked at: There is no access token" in capsys.readouterr().out


def test_private_by_default_and_in_one_commit(logged_in, run, capsys):
    main(["--run", str(run), "--repo_id", "user/student", "--adapter_repo_id", "user/adapter"])
    for name in ("user/student", "user/adapter"):
        assert logged_in.repos[name].private
        assert logged_in.repos[name].messages == ["initial commit", "Upload with singer_hf"]
    assert set(logged_in.files("user/adapter")) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert capsys.readouterr().out.count("Published: http") == 2


def test_the_published_card_is_amended(logged_in, run):
    main(["--run", str(run), "--repo_id", "user/student"])
    api = HfApi(endpoint=logged_in.url, token=logged_in.token)
    card = ModelCard(logged_in.files("user/student")["README.md"].decode())
    by_hand = card.content.replace("## Training", "## Training\n\nOn my own machine.")
    api.upload_file(path_or_fileobj=by_hand.encode(), path_in_repo="README.md", repo_id="user/student")
    main(["--run", str(run), "--repo_id", "user/student", "--exist_ok", "--license", "apache-2.0"])
    card = ModelCard(logged_in.files("user/student")["README.md"].decode())
    assert "On my own machine." in card.text and card.data.license == "apache-2.0"


def test_the_licence_is_the_teachers(logged_in, run, tmp_path):
    teacher = ModelCard("---\nlicense: other\nlicense_name: dinov3\nlicense_link: LICENSE.md\n---\n# Teacher\n")
    api = HfApi(endpoint=logged_in.url, token=logged_in.token)
    api.create_repo("user/teacher")
    api.upload_file(path_or_fileobj=teacher.content.encode(), path_in_repo="README.md", repo_id="user/teacher")
    main(["--run", str(run), "--repo_id", "user/student", "--teacher_id", "user/teacher"])
    card = ModelCard(logged_in.files("user/student")["README.md"].decode())
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "dinov3", "LICENSE.md")
    assert card.data.base_model == ["user/teacher"]
    assert "Licence: `other`, inherited from its teacher." in card.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--run is missing"),
        (["--run", "RUN"], "Nothing to publish"),
        (["--run", "RUN", "--repo_id", "a/b", "--adapter_repo_id", "a/b"], "are two repositories"),
        (["--run", "/nowhere", "--repo_id", "user/a"], "holds no run.json"),
        (["--run", "RUN", "--repo_id", "a/b/c"], "cannot be a repository's name"),
        (["--run", "RUN", "--repo_id", "user/a", "--pictures", "a.png"], "expected FILE=CAPTION"),
        (["--run", "RUN", "--repo_id", "user/a", "--results", "/nowhere"], "No evaluation results|cannot be read"),
        (["--run", "RUN", "--repo_id", "user/a", "--diagnosis", "/nowhere"], "cannot be read as a diagnosis"),
        (["--run", "RUN", "--repo_id", "user/a", "--license_name", "x"], "whose id is other"),
        (["--run", "RUN", "--repo_id", "company/a"], "may not write to company/a"),
    ],
)
def test_mistakes_end_in_one_line(logged_in, run, options, message):
    with pytest.raises(SystemExit) as caught:
        main([str(run) if option == "RUN" else option for option in options])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value).strip()
    assert re.search(message, str(caught.value)), caught.value
    assert not any(logged_in.files(repo) for repo in logged_in.repos)


def test_an_existing_repository_is_named(logged_in, run):
    main(["--run", str(run), "--repo_id", "user/student"])
    with pytest.raises(SystemExit, match="user/student already holds 4 files: .*exist_ok"):
        main(["--run", str(run), "--repo_id", "user/student"])

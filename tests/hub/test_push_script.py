"""examples/push_to_hub.py as users run it."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from released import example_images, result_of

sys.path.append(str(Path(__file__).parents[2] / "examples"))

import push_to_hub
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
        (["--run", "RUN", "--adapter_repo_id", "user/a", "--onnx", "--widget", "a.png"], "--onnx, --widget: of the"),
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
    with pytest.raises(SystemExit, match="user/student already holds 4 files, .*exist_ok"):
        main(["--run", str(run), "--repo_id", "user/student", "--license", "mit"])


def test_two_repositories_are_checked_before_one_changes(logged_in, run, tmp_path):
    api = HfApi(endpoint=logged_in.url, token=logged_in.token)
    api.create_repo("user/adapter", private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="user/adapter")
    with pytest.raises(SystemExit, match="user/adapter already holds 1 files"):
        main(["--run", str(run), "--repo_id", "user/student", "--adapter_repo_id", "user/adapter"])
    assert "user/student" not in logged_in.repos
    without = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("adapter", "manifest.json"))
    with pytest.raises(SystemExit, match="has no adapter"):
        main(["--run", str(without), "--repo_id", "user/student", "--adapter_repo_id", "user/other"])
    assert "user/student" not in logged_in.repos


@pytest.mark.parametrize("output", [False, True])
def test_the_same_command_again_ends_what_was_cut_off(logged_in, run, tmp_path, waits, output):
    command = ["--run", str(run), "--repo_id", "user/student", "--adapter_repo_id", "user/adapter"]
    command += ["--output_dir", str(tmp_path / "kept")] if output else []
    fault = logged_in.fail("POST /api/models/user/adapter/commit", 503, times=99)
    with pytest.raises(SystemExit, match="Run the same command again"):
        main(command)
    assert logged_in.files("user/student") and not logged_in.files("user/adapter")
    fault.times = 0
    main(command)
    main(command)
    assert set(logged_in.files("user/adapter")) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    for name in ("user/student", "user/adapter"):
        assert logged_in.repos[name].messages == ["initial commit", "Upload with singer_hf"]
    if output:
        kept = tmp_path / "kept" / "student"
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == logged_in.files("user/student")
    assert {path.name for path in tmp_path.iterdir()} <= {"kept"}  # no staging is left


def test_a_folder_that_is_not_an_earlier_export_is_never_replaced(logged_in, run, tmp_path):
    command = ["--run", str(run), "--repo_id", "user/student", "--dry_run", "--output_dir"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    copy = shutil.copytree(run, tmp_path / "run")  # which has a manifest, too
    main([*command, str(tmp_path / "kept")])
    main([*command, str(tmp_path / "kept")])
    for name, edit in (("edited", "student/README.md"), ("more", "student/notes.txt")):
        shutil.copytree(tmp_path / "kept", tmp_path / name)
        (tmp_path / name / edit).write_text("By hand.")
    for folder in (tmp_path / "mine", copy, tmp_path / "edited", tmp_path / "more"):
        before = sorted(folder.rglob("*"))
        with pytest.raises(SystemExit, match="is not empty, and not what an earlier call left there unchanged"):
            main([*command, str(folder)])
        assert sorted(folder.rglob("*")) == before


def test_a_card_that_changed_since_it_was_read_is_not_written_over(logged_in, run, monkeypatch):
    main(["--run", str(run), "--repo_id", "user/student"])
    real = push_to_hub.publish

    def meanwhile(*args, **options):
        api = HfApi(endpoint=logged_in.url, token=logged_in.token)
        api.upload_file(path_or_fileobj=b"by hand", path_in_repo="notes.txt", repo_id="user/student")
        return real(*args, **options)

    monkeypatch.setattr(push_to_hub, "publish", meanwhile)
    with pytest.raises(SystemExit, match="has changed meanwhile"):
        main(["--run", str(run), "--repo_id", "user/student", "--exist_ok", "--license", "mit"])
    assert "license: mit" not in logged_in.files("user/student")["README.md"].decode()


def test_a_dry_run_shows_what_the_hub_refuses(logged_in, run, waits, capsys):
    command = ["--run", str(run), "--repo_id", "user/student", "--dry_run"]
    logged_in.fail("GET /api/models/user/student", 403, times=99)
    with pytest.raises(SystemExit, match="may not write"):
        main(command)
    logged_in.faults.clear()
    logged_in.fail("GET /api/models/user/student", way="cut", times=99)
    main(command)
    assert "What is on the Hub was not looked at: The connection to" in capsys.readouterr().out

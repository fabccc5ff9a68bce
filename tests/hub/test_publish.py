"""Publishing against a stand-in of the Hub: one commit, whatever happens on the way."""

import hashlib
import logging
import multiprocessing
import urllib.error
import urllib.request
from email.utils import format_datetime, parsedate_to_datetime

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from singer_hf.release import Destination, PublishError, publish
from singer_hf.release.patience import patiently, retry_after

REPO = "user/student"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "release"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    (path / "config.json").write_text('{"model_type": "vit"}')
    (path / "README.md").write_text("---\nlicense: mit\n---\n# A student\n")
    (path / "images").mkdir()
    (path / "images" / "norms.png").write_bytes(b"a picture" * 100)
    return path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def to(hub, repo_id=REPO, **options):
    return Destination(repo_id, **({"endpoint": hub.url, "token": hub.token} | options))


def test_one_private_commit_holds_every_file(online, folder):
    commit = publish(folder, to(online), message="A student")
    repo = online.repos[REPO]
    assert online.files(REPO) == contents(folder)
    assert repo.private and repo.messages == ["initial commit", "A student"]
    assert commit.oid == repo.branches["main"]


def test_a_name_alone_is_the_tokens_owners(online, folder):
    publish(folder, to(online, "student", private=False))
    assert not online.repos[REPO].private


def test_large_files_in_parts(online, folder):
    online.part_size = 30_000
    publish(folder, to(online))
    assert online.files(REPO) == contents(folder)
    assert online.count("PUT /lfs/[0-9a-f]+/4") == 1


def test_a_branch_is_made_and_main_is_left_alone(online, folder):
    publish(folder, to(online, revision="v1.0"))
    assert online.files(REPO, "v1.0") == contents(folder) and online.files(REPO) == {}
    publish(folder, to(online, revision="v1.0", exist_ok=True))
    assert len(online.repos[REPO].messages) == 2  # nothing differed


def test_a_model_that_is_there_is_not_overwritten_unasked(online, folder):
    publish(folder, to(online))
    before = online.files(REPO)
    (folder / "config.json").write_text("{}")
    with pytest.raises(PublishError, match="already holds 4 files"):
        publish(folder, to(online))
    assert online.files(REPO) == before
    publish(folder, to(online, exist_ok=True))
    assert online.files(REPO)["config.json"] == b"{}"


def test_weights_of_an_earlier_commit_do_not_stay_beside_new_ones(online, folder):
    publish(folder, to(online))
    api = HfApi(endpoint=online.url, token=online.token)
    api.upload_file(path_or_fileobj=b"by hand", path_in_repo="notes.txt", repo_id=REPO)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    publish(folder, to(online, exist_ok=True))
    assert "model.safetensors" not in online.files(REPO)
    assert online.files(REPO)["notes.txt"] == b"by hand"


def test_what_this_package_wrote_beside_earlier_weights_goes_with_them(online, folder):
    beside = ["onnx/model.onnx", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    beside.append("distillation.safetensors")
    api = HfApi(endpoint=online.url, token=online.token)
    for name in (*beside, "adapter/notes.txt", "last-checkpoint/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of earlier weights")
    publish(folder, to(online))
    for name in (*beside, "adapter/notes.txt", "last-checkpoint/model.safetensors"):
        (folder / name).unlink()
    publish(folder, to(online, exist_ok=True))
    kept = {"adapter/notes.txt", "last-checkpoint/model.safetensors"}
    assert set(online.files(REPO)) == {*contents(folder), *kept}
    assert api.model_info(REPO).sha == online.repos[REPO].branches["main"]


def test_a_destination_shows_no_token(online):
    assert online.token not in repr(to(online))


def test_model_and_adapter_do_not_share_a_repository(online, folder):
    publish(folder, to(online))
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(PublishError, match="holds a model, and this is an adapter"):
        publish(folder, to(online, exist_ok=True))


@pytest.mark.parametrize(
    "request_", ["GET /api/models", "POST /api/repos/create", "POST /api/models/user/student/preupload", "PUT /lfs/"]
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(online, folder, waits, request_, status):
    online.fail(request_, status, times=2)
    publish(folder, to(online))
    assert online.files(REPO) == contents(folder)
    assert len(waits) >= 2 and len(online.repos[REPO].messages) == 2


def test_retry_after_is_honoured(online, folder, waits):
    online.fail("POST /api/models/user/student/commit", 429, headers={"Retry-After": "17"})
    publish(folder, to(online))
    assert waits == [17.0] and len(online.repos[REPO].messages) == 2


def test_too_long_a_wait_is_told_and_not_slept(online, folder, waits):
    online.fail("POST /api/models/user/student/commit", 429, headers={"Retry-After": "3600"})
    with pytest.raises(PublishError, match="wait 3600 s.*not sent twice"):
        publish(folder, to(online))
    assert waits == [] and online.files(REPO) == {}


def test_retry_after_as_a_date():
    assert retry_after("12") == 12 and retry_after(None) is None and retry_after("soon") is None
    later = format_datetime(parsedate_to_datetime("Wed, 21 Oct 2099 07:28:00 GMT"), usegmt=True)
    assert retry_after(later) > 1e6


def test_a_commit_whose_answer_is_lost_is_not_made_twice(online, folder, waits, monkeypatch):
    real, lost = HfApi.create_commit, []

    def create_commit(self, *args, **options):
        info = real(self, *args, **options)
        if not lost:
            lost.append(info)
            raise type(online_error(self))("the answer never came")
        return info

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    commit = publish(folder, to(online))
    assert lost and online.repos[REPO].messages == ["initial commit", "Upload model with singer_hf"]
    assert commit.oid == online.repos[REPO].branches["main"]


def online_error(api):
    """What a broken connection raises."""
    try:
        HfApi(endpoint="http://127.0.0.1:1", token=api.token).model_info(REPO)
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not accept this access token"),
        (403, "may not write to user/student"),
        (409, "is being changed by someone else"),
        (500, r"The Hub has trouble \(500.*Run the same command again"),
    ],
)
def test_what_does_not_pass_is_told_in_one_line_and_leaves_nothing(online, folder, waits, status, message):
    online.fail("POST /api/models/user/student/commit", status, times=99)
    with pytest.raises(PublishError, match=message) as caught:
        publish(folder, to(online))
    assert "\n" not in str(caught.value) and online.token not in str(caught.value)
    assert online.files(REPO) == {}


def test_no_token(online, folder):
    with pytest.raises(PublishError, match="There is no access token: log in with `hf auth login`, or set HF_TOKEN"):
        publish(folder, to(online, token=None))
    assert online.requests == []


def test_a_token_that_may_not_write(online, folder):
    with pytest.raises(PublishError, match="may not write to user/student"):
        publish(folder, to(online, token=online.read_token))
    with pytest.raises(PublishError, match="may not write to company/student"):
        publish(folder, to(online, "company/student"))
    with pytest.raises(PublishError, match="does not accept this access token"):
        publish(folder, to(online, token="hf_" + "x" * 34))
    assert online.repos == {}


def test_no_network(online, folder, waits):
    with pytest.raises(PublishError, match=r"The connection to http://127.0.0.1:1 failed .*: is there a network\?"):
        publish(folder, Destination(REPO, endpoint="http://127.0.0.1:1", token=online.token))
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_offline_mode_is_named(online, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
        publish(folder, to(online))


def test_a_name_that_cannot_be(online):
    with pytest.raises(PublishError, match="'a/b/c' cannot be a repository's name"):
        Destination("a/b/c")


def test_a_public_repository_is_not_taken_for_a_private_one(online, folder):
    publish(folder, to(online, private=False))
    with pytest.raises(PublishError, match="user/student is public, but private was asked for"):
        publish(folder, to(online, private=True, exist_ok=True))
    publish(folder, to(online, exist_ok=True))


def test_invalid_metadata_is_refused_before_anything_is_sent(online, folder):
    (folder / "README.md").write_text("---\nbase_model: ./here\n---\n")
    with pytest.raises(PublishError, match='refuses the card.s metadata: "base_model" with value "./here"'):
        publish(folder, to(online))
    assert online.repos == {} and online.received == {}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "state.pkl", "modeling.py", "images/data.npy"])
def test_neither_pickles_nor_code(online, folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(PublishError, match="neither pickles nor code"):
        publish(folder, to(online))
    assert online.requests == []


def test_tokens_are_neither_published_nor_logged(online, folder, caplog, waits):
    caplog.set_level(logging.DEBUG)
    (folder / "notes.txt").write_text(f"my token is {online.read_token}")
    with pytest.raises(PublishError, match="notes.txt holds an access token"):
        publish(folder, to(online))
    (folder / "notes.txt").unlink()
    online.fail("POST /api/repos/create", 500, message=f"you sent {online.token}")
    online.fail("POST /api/models/user/student/commit", 403, message=f"you sent {online.token}")
    with pytest.raises(PublishError, match="<left out>") as caught:
        publish(folder, to(online))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("singer_hf")]
    assert ours and not any(online.token in text for text in [*ours, str(caught.value)])


def test_no_token_of_whatever_form_is_in_the_log(caplog, waits):
    errors = [HTTPError("you sent my-own-token")]

    def call():
        if errors:
            raise errors.pop()
        return "done"

    assert patiently(call, ("my-own-token",)) == "done"
    assert "you sent <left out>" in caplog.text and "my-own-token" not in caplog.text


def test_a_connection_cut_in_mid_upload_is_tried_again(online, folder, waits):
    online.fail("PUT /lfs/", way="cut", times=2)
    publish(folder, to(online))
    assert online.files(REPO) == contents(folder)


def test_an_upload_that_is_killed_and_run_again_is_complete_and_sends_only_what_is_missing(online, folder):
    weights, picture = folder / "model.safetensors", folder / "images" / "norms.png"
    big, small = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (weights, picture))
    online.fail(f"PUT /lfs/{big}", way="stall")
    # Forked: it has this process's modules and way to the stand-in, whose threads stay here.
    upload = multiprocessing.get_context("fork").Process(target=publish, args=(folder, to(online)))
    upload.start()
    assert online.reached.wait(60)
    for _ in range(6000):
        if small in online.received:
            break
        online.released.wait(0.01)
    upload.kill()
    upload.join()
    assert online.files(REPO) == {} and big not in online.objects  # nothing half-published
    publish(folder, to(online))
    assert online.files(REPO) == contents(folder)
    assert online.repos[REPO].messages == ["initial commit", "Upload model with singer_hf"]
    assert online.received == {small: picture.stat().st_size, big: weights.stat().st_size}  # each once


def test_the_stand_in_refuses_content_of_another_hash(hub):
    put = urllib.request.Request(f"{hub.url}/lfs/{'0' * 64}", data=b"something else", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(put)
    assert not hub.objects

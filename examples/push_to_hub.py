"""Publishes a run's student on the Hub, and its adapter as a repository of its own.

    python examples/push_to_hub.py --run runs/vit-l-to-t --repo_id me/vit-tiny-singer --dry_run
    python examples/push_to_hub.py --run runs/vit-l-to-t --repo_id me/vit-tiny-singer --results results
    python examples/push_to_hub.py --run runs/vit-l-to-t --adapter_repo_id me/vit-large-nullspace-adapter
    python examples/push_to_hub.py --run runs/vit-l-to-t --repo_id me/pets --classifier runs/pets

The dry run shows every file and the whole card and sends nothing. Repositories are private unless `--no_private`. The
same command again finishes an upload that was cut off. The access token is HF_TOKEN, or that of `hf auth login`; there
is no option for it, since a command line is kept in histories and seen by others. A config file holds any of these
options; the command line wins over it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.append(sys.path.pop(0))  # evaluate.py stands beside this file, see there

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, Optional

from huggingface_hub import HfApi, ModelCard

from singer_hf.checkpoints.manifest import MANIFEST, CheckpointError, verify_manifest
from singer_hf.checkpoints.manifest import publish as keep
from singer_hf.command_line import errors_in_one_line, parse_options, setup
from singer_hf.evaluation import find_results
from singer_hf.release import (
    Destination,
    License,
    OnnxError,
    PublishError,
    Run,
    adapter_folder,
    license_of,
    publish,
)
from singer_hf.release.amend import read_card
from singer_hf.release.destination import HubNotReached
from singer_hf.release.diagnosis import STATISTICS_PICTURE, card_diagnosis
from singer_hf.release.emissions import Emissions
from singer_hf.release.folder import ReleaseFolder, student_folder
from singer_hf.release.publish import check_card, files_to_publish
from singer_hf.release.published import Published, check_free, existing_card, look_up


@dataclass
class PushArguments:
    """What is published, where, and what its card says beside what was recorded."""

    run: Optional[str] = field(default=None, metadata={"help": "Folder of the run, or of one of its checkpoints."})
    repo_id: Optional[str] = field(default=None, metadata={"help": "owner/name of the student's repository."})
    adapter_repo_id: Optional[str] = field(
        default=None, metadata={"help": "owner/name of the repository of the teacher's adapter."}
    )
    classifier: Optional[str] = field(
        default=None,
        metadata={
            "help": "Folder of evaluate.py --export_classifier: published in the place of the headless student."
        },
    )
    onnx: bool = field(
        default=False, metadata={"help": "Export to ONNX too (extra `onnx`), checked for equal outputs."}
    )

    # -- where --------------------------------------------------------------------------------------------------------
    private: bool = field(
        default=True, metadata={"help": "Whether only you and your organisation see a new repository."}
    )
    revision: str = field(default="main", metadata={"help": "Branch, made where missing."})
    exist_ok: bool = field(default=False, metadata={"help": "Commit to a repository that already holds a model."})
    commit_message: str = field(default="Upload with singer_hf", metadata={"help": "Message of the commit."})
    dry_run: bool = field(default=False, metadata={"help": "Show files and card, send nothing."})
    output_dir: Optional[str] = field(
        default=None,
        metadata={
            "help": "Keep what is published in this folder (student/ and adapter/): a new one, or an earlier call's."
        },
    )

    # -- what the card says -------------------------------------------------------------------------------------------
    results: Optional[list[str]] = field(
        default=None,
        metadata={
            "help": "Result files of evaluate.py, or folders of them: the student's, its teacher's, baselines'."
        },
    )
    diagnosis: Optional[str] = field(
        default=None,
        metadata={"help": "Output folder of diagnose.py --run: its sentence, norms and picture of norms, no images."},
    )
    pictures: Optional[list[str]] = field(
        default=None,
        metadata={"help": "FILE=CAPTION, more pictures for the card. Only such as you may publish."},
    )
    widget: Optional[list[str]] = field(
        default=None, metadata={"help": "Example images for the model's page. Only such as you may publish."}
    )
    emissions: Optional[str] = field(default=None, metadata={"help": "codecarbon's emissions.csv of the run."})
    license: Optional[str] = field(
        default=None, metadata={"help": "Its id on the Hub. Default: inherited from the teacher's card."}
    )
    license_name: Optional[str] = field(default=None, metadata={"help": "Name of a licence whose id is other."})
    license_link: Optional[str] = field(default=None, metadata={"help": "Link to a licence whose id is other."})
    teacher_id: Optional[str] = field(
        default=None, metadata={"help": "Hub id of the teacher, where the run had it from a folder."}
    )
    datasets: Optional[list[str]] = field(
        default=None, metadata={"help": "Hub ids of the training images. Default: the recorded one."}
    )
    tags: Optional[list[str]] = field(default=None, metadata={"help": "More tags."})
    training_data: Optional[str] = field(
        default=None, metadata={"help": "A sentence on the training images, in place of what the run recorded."}
    )
    evaluation_note: Optional[str] = field(default=None, metadata={"help": "A sentence on the evaluation."})
    limits_note: Optional[str] = field(default=None, metadata={"help": "A sentence on intended use and limits."})
    card: Optional[str] = field(
        default=None, metadata={"help": "A card of yours to amend. Default: the repository's, where it has one."}
    )

    def __post_init__(self):
        if self.license_name is not None and self.license != "other":
            raise ValueError("--license_name is the name of a licence whose id is other: --license other.")
        of_student = ("classifier", "onnx", "results", "pictures", "widget", "evaluation_note")
        given = [f"--{name}" for name in of_student if getattr(self, name)]
        if given and self.repo_id is None and self.adapter_repo_id is not None:
            raise ValueError(f"{', '.join(given)}: of the student's repository alone, so name it with --repo_id.")
        if self.license is not None and self.license.strip() == "":
            raise ValueError("--license is empty: leave it out to inherit the teacher's.")


def stated(args: PushArguments) -> License | None:
    """The licence that was asked for, `None` to inherit it."""
    if args.license is None:
        return None
    return License(args.license, "as its author states", args.license_name, args.license_link)


def captioned(values: list[str]) -> list[tuple[Path, str]]:
    """FILE=CAPTION as (file, caption)."""
    pairs = []
    for value in values:
        file, _, caption = value.partition("=")
        if not caption:
            raise ValueError(
                f"--pictures {value}: expected FILE=CAPTION; the caption is for those who cannot see it too."
            )
        pairs.append((Path(file), caption))
    return pairs


def facts_of(args: PushArguments, run: Run, repo_id: str) -> dict[str, Any]:
    """What student's and adapter's cards have in common."""
    return {
        "repo_id": repo_id,
        "run": run,
        "license": license_of(stated(args), run.sources(args.teacher_id)),
        "teacher_id": args.teacher_id,
        "datasets": args.datasets or (),
        "tags": args.tags or (),
        "training_data": args.training_data,
        "limits_note": args.limits_note,
        "emissions": None if args.emissions is None else Emissions.load(args.emissions),
        "diagnosis": diagnosis_of(args, run),
    }


def diagnosis_of(args: PushArguments, run: Run):
    if args.diagnosis is None:
        return None
    return card_diagnosis(args.diagnosis, args.run, run.content["teacher"]["name"])


def student_release(
    args: PushArguments, run: Run, folder: Path, repo_id: str, card: ModelCard | None
) -> ReleaseFolder:
    pictures = captioned(args.pictures or [])
    if args.diagnosis is not None:
        caption = "Patch norms of every block of the teacher, and what outliers make up of a plain feature loss."
        pictures.insert(0, (Path(args.diagnosis, STATISTICS_PICTURE), caption))
    paths = [*(args.results or []), *([args.classifier] if args.classifier else [])]
    return student_folder(
        folder,
        args.run,
        classifier=args.classifier,
        onnx=args.onnx,
        pictures=pictures,
        widget=[Path(file) for file in args.widget or []],
        existing=card,
        results=find_results(paths) if paths else (),
        evaluation_note=args.evaluation_note,
        **facts_of(args, run, repo_id),
    )


def adapter_release(
    args: PushArguments, run: Run, folder: Path, repo_id: str, card: ModelCard | None
) -> ReleaseFolder:
    return adapter_folder(folder, args.run, existing=card, **facts_of(args, run, repo_id))


@dataclass
class Release:
    """One repository: what is there, and the folder that becomes its next commit."""

    destination: Destination
    repo_id: str
    api: Optional[HfApi]
    published: Published
    made: ReleaseFolder
    files: dict[str, Path]

    def show(self, private: bool) -> None:
        visibility = "private" if private else "public"
        print(f"{self.repo_id}, branch {self.destination.revision}, {visibility}:")
        for name, path in self.files.items():
            print(f"  {path.stat().st_size:>14,} bytes  {name}")
        for sentence in self.made.kept:
            print(f"  kept: {sentence}")


def look(destination: Destination, dry_run: bool) -> tuple[HfApi | None, str, Published]:
    """Client, owner/name, and what is published there already; a dry run goes on without token or network."""
    try:
        api = destination.api()
        return api, destination.owned(api), look_up(destination, api)
    except HubNotReached as error:
        if not dry_run:
            raise
        print(f"What is on the Hub was not looked at: {error}\n")
        return None, destination.repo_id, Published(exists=False)


def prepare(args: PushArguments, run: Run, folder: Path, repo: str, write: Callable[..., ReleaseFolder]) -> Release:
    """Exports and checks one repository; nothing is sent."""
    destination = Destination(repo, args.revision, args.private, args.exist_ok)
    api, repo_id, published = look(destination, args.dry_run)
    card = read_card(args.card) if args.card else None
    if card is None and api is not None:
        card = existing_card(destination, api, published)
    made = write(args, run, folder, repo_id, card)
    files = files_to_publish(folder, (api and api.token,))
    check_free(repo_id, published, files, args.exist_ok)
    if api is not None and not args.dry_run:
        check_card(files, destination, api)
    return Release(destination, repo_id, api, published, made, files)


def check_output(folder: Path) -> None:
    """Raises ValueError unless the folder is new, empty, or what an earlier call of this script left there."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    refused = f"--output_dir {folder} is not empty, and not what an earlier call left there unchanged"
    try:
        verify_manifest(folder)
    except CheckpointError as error:
        raise ValueError(f"{refused} ({error}). Name a new folder.") from error
    listed = set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    others = sorted(there - listed - {MANIFEST}) or sorted(
        name for name in listed if Path(name).parts[0] not in ("student", "adapter")
    )
    if others:
        raise ValueError(f"{refused} ({', '.join(others[:3])}). Name a new folder.")


def release(args: PushArguments, record: Run, folder: Path, output: Path | None) -> None:
    """Both repositories are exported and checked before one of them changes.

    Args:
        folder: to export into.
        output: where to keep it, beside `folder`.
    """
    wanted = [("student", args.repo_id, student_release), ("adapter", args.adapter_repo_id, adapter_release)]
    releases = {
        name: prepare(args, record, folder / name, repo, write) for name, repo, write in wanted if repo is not None
    }
    for each in releases.values():
        each.show(args.private)
        if args.dry_run:
            print(f"\n{each.made.card}\n")
    if output is not None:
        keep(folder, output)
        folder = output
    if args.dry_run:
        print("Dry run: nothing was sent.")
        return
    for name, each in releases.items():
        done = publish(folder / name, each.destination, message=args.commit_message, published=each.published)
        print(f"Published: {done.commit_url}")


def run(argv: list[str]) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with setup(PublishError, OnnxError, ImportError):
        (args, *_) = parse_options(PushArguments, argv, description=__doc__)
        if args.run is None:
            raise ValueError("--run is missing: the folder of a run.")
        if args.repo_id is None and args.adapter_repo_id is None:
            raise ValueError("Nothing to publish: name the student's repository (--repo_id), the adapter's, or both.")
        if args.repo_id == args.adapter_repo_id:
            raise ValueError("Student and adapter are two repositories: name them differently.")
        record = Run.load(args.run)
        output = None if args.output_dir is None else Path(args.output_dir).absolute()
        if output is not None:
            check_output(output)
            output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output and output.parent, prefix="release-") as temporary:
            release(args, record, Path(temporary, "release"), output)


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line():
        run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()

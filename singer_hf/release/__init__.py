"""Release of a student on the Hub: a finished run becomes a public model that transformers alone opens.

`export.py` (what strangers get) → `record.py`, `results.py`, `diagnosis.py`, `emissions.py`, `license.py` (what was
recorded of it) → `card.py` and its template → `amend.py` (a card that exists) → `folder.py` (all of it together) →
`destination.py`, `published.py` (where it goes, what is there) → `publish.py` (one commit). `training.py` (what a
trainer pushes) and `examples/push_to_hub.py` are made of these.
"""

from .amend import amend
from .card import CardFacts, Picture, model_card
from .destination import Destination, PublishError
from .export import ExportedModel, ExportError, export_adapter, export_classifier, export_student
from .folder import ReleaseFolder, adapter_folder, student_folder
from .license import License, inherited_license, license_of, stated_license
from .onnx import OnnxError, OnnxExport, export_onnx
from .publish import publish
from .record import RecordError, Run
from .results import ResultsError

__all__ = [
    "CardFacts",
    "Destination",
    "ExportError",
    "ExportedModel",
    "License",
    "OnnxError",
    "OnnxExport",
    "Picture",
    "PublishError",
    "RecordError",
    "ReleaseFolder",
    "ResultsError",
    "Run",
    "adapter_folder",
    "amend",
    "export_adapter",
    "export_classifier",
    "export_onnx",
    "export_student",
    "inherited_license",
    "license_of",
    "model_card",
    "publish",
    "stated_license",
    "student_folder",
]

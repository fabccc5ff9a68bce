"""Diagnosis of teachers, adapters and students: has a ViT artifacts, would SiNGER help, what did it do?

`examples/diagnose.py` is the command. In Python, [`diagnose`] does it all; [`diagnose_teacher`],
[`measure_refinements`], [`measure_student`] and [`measure_perturbations`] are its parts. docs/paper_items.md says
which function makes which of the paper's tables and figures.
"""

from .closed_form import fit_closed_form
from .effect import measure_refinements
from .finished_run import load_fit
from .images import ImageBatches, ImageSample, ModelInput
from .outliers import OutlierRule, Outliers, find_outliers
from .perturbation import BASES, measure_perturbations
from .recommend import Recommendation, recommend
from .refinement import Refinement, adapter_refinements, energy_shares, initial_refinements, refined_model
from .report import Picture, Section, render_report
from .run import CLOSED_FORM, CLOSED_FORM_FREE, INITIAL, Diagnosis, DiagnosisOptions, diagnose
from .sections import report_sections
from .student import StudentFit, measure_student
from .teacher import LayerDiagnosis, TeacherDiagnosis, diagnose_teacher

__all__ = [
    "BASES",
    "CLOSED_FORM",
    "CLOSED_FORM_FREE",
    "INITIAL",
    "Diagnosis",
    "DiagnosisOptions",
    "ImageBatches",
    "ImageSample",
    "LayerDiagnosis",
    "ModelInput",
    "OutlierRule",
    "Outliers",
    "Picture",
    "Recommendation",
    "Refinement",
    "Section",
    "StudentFit",
    "TeacherDiagnosis",
    "adapter_refinements",
    "diagnose",
    "diagnose_teacher",
    "energy_shares",
    "find_outliers",
    "fit_closed_form",
    "initial_refinements",
    "load_fit",
    "measure_perturbations",
    "measure_refinements",
    "measure_student",
    "recommend",
    "refined_model",
    "render_report",
    "report_sections",
]

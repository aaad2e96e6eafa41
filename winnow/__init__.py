"""Make a large model cheap to serve, and prove that the small one is as good. Everything that users import.

A model in hand::

    import winnow

    winnow.up()                                                   # the servers, on this machine
    result = winnow.compress(model, train, validation, test, budget={"max_accuracy_drop": 0.01})
    result.variants                                               # a data frame: every variant, measured
    winnow.load(result).predict(sample)                           # through the engine that serves

A spec: ``winnow.run("digits")``. A model in service: ``winnow.load("digits@champion")``. What you write yourself is
a :class:`Workload`. Names are imported when they are used: ``import winnow`` alone takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "ACCURACY",
    "COSINE",
    "IOU",
    "JACCARD",
    "LABEL_ACCURACY",
    "PIXEL_ACCURACY",
    "SQUARED_ERROR",
    "ArrayWorkload",
    "AsyncClient",
    "CausalLM",
    "ChildFailed",
    "Client",
    "DataCheckFailed",
    "DataReadError",
    "DigitPairs",
    "Digits",
    "Docstrings",
    "EndpointBusy",
    "EndpointError",
    "EndpointRefused",
    "EndpointUnreachable",
    "ExportRefused",
    "GateFailed",
    "ImageClassifier",
    "Images",
    "Interrupted",
    "InvalidRequest",
    "KeyRefused",
    "LetterSequences",
    "LoadedModel",
    "Metric",
    "MobileNetClassifier",
    "MovedDigits",
    "NotServed",
    "ParityFailed",
    "PruningRefused",
    "RegistryError",
    "ResNet20",
    "RunResult",
    "SegmentDisplay",
    "SentenceVectors",
    "ShallowClassifier",
    "SklearnTable",
    "SpecError",
    "StackDown",
    "StackError",
    "StageOutOfMemory",
    "StageTimedOut",
    "StandardLibrary",
    "StoreDenied",
    "StoreError",
    "StoreUnavailable",
    "StridedClassifier",
    "Tabular",
    "Text",
    "TextLabels",
    "TextTags",
    "TrainingDiverged",
    "VggClassifier",
    "WeightsMismatch",
    "WinnowError",
    "Workload",
    "WorkloadChanged",
    "WorkloadError",
    "compare",
    "complete_splits",
    "compress",
    "down",
    "graph_module",
    "load",
    "local",
    "promote",
    "ray_application",
    "read_idx",
    "read_image_folder",
    "read_npz",
    "read_table",
    "rollback",
    "run",
    "split_columns",
    "up",
    "variants",
]

if TYPE_CHECKING:  # one line per name: what is here is what there is, for type checkers and at run time alike
    from flows.calls.compress_call import compress_model as compress
    from flows.calls.inference_client import AsyncClient as AsyncClient
    from flows.calls.inference_client import Client as Client
    from flows.calls.inference_errors import EndpointBusy as EndpointBusy
    from flows.calls.inference_errors import KeyRefused as KeyRefused
    from flows.calls.inference_errors import NotServed as NotServed
    from flows.calls.load_call import load_model as load
    from flows.calls.release_calls import promote_version as promote
    from flows.calls.release_calls import roll_back as rollback
    from flows.calls.run_call import run_spec as run
    from flows.calls.run_frames import compare as compare
    from flows.calls.run_frames import variants_of as variants
    from flows.calls.run_result import RunResult as RunResult
    from flows.calls.stack_calls import down as down
    from flows.calls.stack_calls import up as up
    from infra.faults import StackDown as StackDown
    from infra.faults import StackError as StackError
    from model_registry.endpoint_client import EndpointError as EndpointError
    from model_registry.endpoint_client import EndpointRefused as EndpointRefused
    from model_registry.endpoint_client import EndpointUnreachable as EndpointUnreachable
    from model_registry.mlflow_rest import RegistryError as RegistryError
    from model_registry.store import StoreDenied as StoreDenied
    from model_registry.store import StoreError as StoreError
    from model_registry.store import StoreUnavailable as StoreUnavailable
    from serving.exceptions import InvalidRequest as InvalidRequest
    from serving.loaded_model import LoadedModel as LoadedModel
    from serving.ray_application import ray_application as ray_application
    from tasks.readers.folder_reader import read_image_folder as read_image_folder
    from tasks.readers.idx_reader import read_idx as read_idx
    from tasks.readers.npz_reader import read_npz as read_npz
    from tasks.readers.sources import local as local
    from tasks.readers.splitting import complete as complete_splits
    from tasks.readers.splitting import split_columns as split_columns
    from tasks.readers.tables import read_table as read_table
    from tasks.running.errors import ChildFailed as ChildFailed
    from tasks.running.errors import DataCheckFailed as DataCheckFailed
    from tasks.running.errors import DataReadError as DataReadError
    from tasks.running.errors import ExportRefused as ExportRefused
    from tasks.running.errors import GateFailed as GateFailed
    from tasks.running.errors import Interrupted as Interrupted
    from tasks.running.errors import ParityFailed as ParityFailed
    from tasks.running.errors import PruningRefused as PruningRefused
    from tasks.running.errors import SpecError as SpecError
    from tasks.running.errors import StageOutOfMemory as StageOutOfMemory
    from tasks.running.errors import StageTimedOut as StageTimedOut
    from tasks.running.errors import TrainingDiverged as TrainingDiverged
    from tasks.running.errors import WeightsMismatch as WeightsMismatch
    from tasks.running.errors import WinnowError as WinnowError
    from tasks.running.errors import WorkloadChanged as WorkloadChanged
    from tasks.running.errors import WorkloadError as WorkloadError
    from tasks.workloads.architectures import ImageClassifier as ImageClassifier
    from tasks.workloads.architectures import ShallowClassifier as ShallowClassifier
    from tasks.workloads.architectures import StridedClassifier as StridedClassifier
    from tasks.workloads.array_workload import ArrayWorkload as ArrayWorkload
    from tasks.workloads.causal_lm import CausalLM as CausalLM
    from tasks.workloads.contract import WorkloadProtocol as Workload
    from tasks.workloads.digit_pairs import DigitPairs as DigitPairs
    from tasks.workloads.digits import Digits as Digits
    from tasks.workloads.digits import MovedDigits as MovedDigits
    from tasks.workloads.docstrings import Docstrings as Docstrings
    from tasks.workloads.graph_module import graph_module as graph_module
    from tasks.workloads.images import Images as Images
    from tasks.workloads.letter_sequences import LetterSequences as LetterSequences
    from tasks.workloads.mobilenet import MobileNetClassifier as MobileNetClassifier
    from tasks.workloads.resnet import ResNet20 as ResNet20
    from tasks.workloads.segment_display import SegmentDisplay as SegmentDisplay
    from tasks.workloads.sentence_vectors import SentenceVectors as SentenceVectors
    from tasks.workloads.sklearn_table import SklearnTable as SklearnTable
    from tasks.workloads.standard_library import StandardLibrary as StandardLibrary
    from tasks.workloads.tabular import Tabular as Tabular
    from tasks.workloads.text import Text as Text
    from tasks.workloads.text_labels import TextLabels as TextLabels
    from tasks.workloads.text_tags import TextTags as TextTags
    from tasks.workloads.vgg import VggClassifier as VggClassifier
    from tasks.workloads.workload import ACCURACY as ACCURACY
    from tasks.workloads.workload import COSINE as COSINE
    from tasks.workloads.workload import IOU as IOU
    from tasks.workloads.workload import JACCARD as JACCARD
    from tasks.workloads.workload import LABEL_ACCURACY as LABEL_ACCURACY
    from tasks.workloads.workload import PIXEL_ACCURACY as PIXEL_ACCURACY
    from tasks.workloads.workload import SQUARED_ERROR as SQUARED_ERROR
    from tasks.workloads.workload import Metric as Metric


def __getattr__(name: str) -> Any:
    from tasks.running.source_hash import public_place

    module, attribute = public_place(name) or ("", "")
    if not module:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__dir__())}")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return __all__

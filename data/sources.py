"""All text sources by type: what a config may name."""

from data.chat_sources import ChatSource
from data.documents import LegalPlaySource, RecordTextSource, TextFileSource
from data.grade_school import CalculationSource, GradeSchoolSource
from data.gsm8k import Gsm8kSource
from data.listops import ListOpsSource
from data.synthetic import InductionHeadsSource, RecallSource, SelectiveCopyingSource

TextSource = (
    LegalPlaySource
    | TextFileSource
    | RecordTextSource
    | SelectiveCopyingSource
    | InductionHeadsSource
    | RecallSource
    | ListOpsSource
    | GradeSchoolSource
    | CalculationSource
    | Gsm8kSource
    | ChatSource
)

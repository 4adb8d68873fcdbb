"""Durable background jobs for Python: one SQLite file on a laptop, the same code across a fleet."""

from piecework.app import Piecework
from piecework.client.handle import Handle
from piecework.client.handler import Handler, Prepared
from piecework.client.views import JobEvent, JobView, Report
from piecework.core.errors import (
    AmbiguousArgs,
    ArgsInvalid,
    Cancelled,
    DuplicateJob,
    DuplicateKind,
    GiveUp,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobUnfinished,
    LeaseLost,
    NaiveTime,
    NotImportable,
    PayloadTooLarge,
    PieceworkError,
    ResultInvalid,
    ScheduleInvalid,
    SchemaOutdated,
    Snooze,
    StoreUnavailable,
    UnknownKind,
)
from piecework.core.job import Attempt, LogLine, Retention, State
from piecework.core.retry import Retry
from piecework.handlers.injection import inject
from piecework.handlers.run import Progress, Run
from piecework.ports import Node, QueueInfo

__all__ = [
    "AmbiguousArgs",
    "ArgsInvalid",
    "Attempt",
    "Cancelled",
    "DuplicateJob",
    "DuplicateKind",
    "GiveUp",
    "Handle",
    "Handler",
    "JobCancelled",
    "JobEvent",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "JobUnfinished",
    "JobView",
    "LeaseLost",
    "LogLine",
    "NaiveTime",
    "Node",
    "NotImportable",
    "PayloadTooLarge",
    "Piecework",
    "PieceworkError",
    "Prepared",
    "Progress",
    "QueueInfo",
    "Report",
    "ResultInvalid",
    "Retention",
    "Retry",
    "Run",
    "ScheduleInvalid",
    "SchemaOutdated",
    "Snooze",
    "State",
    "StoreUnavailable",
    "UnknownKind",
    "inject",
]

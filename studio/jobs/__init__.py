"""Durable jobs: requests and workflows that are accepted on disk, and survive the process that runs them."""

from studio.jobs.job import Job, JobArtifact, JobError, JobEvent, JobPosition, JobState, WorkflowWork, parse_work
from studio.jobs.jobs import Jobs

__all__ = [
    "Job",
    "JobArtifact",
    "JobError",
    "JobEvent",
    "JobPosition",
    "JobState",
    "Jobs",
    "WorkflowWork",
    "parse_work",
]

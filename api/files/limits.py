"""How much may be stored."""

from dataclasses import dataclass

MOST_DAYS = 36_500


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """Of one file, and of one user's files together; and how long files are kept."""

    file_bytes: int = 200_000_000
    user_bytes: int = 2_000_000_000
    user_files: int = 1000
    days: int = 30  # for which a file is kept, unless its upload says less
    job_days: int = 7  # for which a stored job is kept after its end

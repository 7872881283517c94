"""What a job is charged with, in tokens, so that users are treated fairly by work and not by number of requests.

The length of an answer is known at its end alone. So a job is charged with what is expected of it, and what the
expectation was wrong by is added to the user's next job: in the long run the charges are the tokens that were worked.
(As in "Fairness in Serving Large Language Models", Sheng et al., OSDI 2024, with predicted lengths.)
"""

from collections import OrderedDict
from dataclasses import dataclass

from broker.stream import Stream
from broker.wire import Finished, Job, JobClass

CHARACTERS_A_TOKEN = 4  # roughly, in English text
UNKNOWN_ANSWER = 256  # tokens expected of the very first answer
REMEMBERED = 20  # the mean follows about so many of the latest answers
LEAST = 1.0  # token: every job moves its user on
MOST_ACCOUNTS = 10_000

Owner = tuple[str, JobClass]  # the line is fair between users inside a class


@dataclass(slots=True)
class Account:
    """What is known of a user's jobs of one class."""

    owed: float = 0.0  # tokens that were worked and not charged; negative: charged and not worked
    mean: float = float(UNKNOWN_ANSWER)  # tokens of an answer
    answers: int = 0  # that the mean was made of, up to REMEMBERED

    def learn(self, answer: int) -> None:
        """One more answer had so many tokens."""
        self.answers = min(self.answers + 1, REMEMBERED)
        self.mean += (answer - self.mean) / self.answers


@dataclass(frozen=True, slots=True)
class Charge:
    """What a job is charged with (`work`). Of the job itself so many tokens are `expected`, its prompt's included."""

    owner: Owner
    work: float
    expected: float
    prompt: float


class Ledger:
    """The accounts of the users seen lately. For each, at any time: charges + `owed` = tokens worked by the jobs that
    have ended + tokens expected of those that have not.
    """

    def __init__(self, most: int = MOST_ACCOUNTS) -> None:
        self._most = most
        self._accounts: OrderedDict[Owner, Account] = OrderedDict()  # the one used last comes last
        self._everybody = Account()  # what is expected of a user's first answer

    def account(self, owner: Owner) -> Account:
        """The user's account; a new one takes the place of the one that was not used for longest."""
        found = self._accounts.setdefault(owner, Account())
        self._accounts.move_to_end(owner)
        if len(self._accounts) > self._most:
            self._accounts.popitem(last=False)
        return found

    def charge(self, job: Job) -> Charge:
        """Charges the job, and with it what its user owes. What LEAST charges too much is carried on."""
        owner = (job.user, job.job_class)
        account = self.account(owner)
        prompt = prompt_tokens(job)
        answer, limit = (
            (account if account.answers else self._everybody).mean,
            job.sampling.max_tokens,
        )
        expected = prompt + (answer if limit is None else min(answer, limit))
        work = max(LEAST, expected + account.owed)
        account.owed -= work - expected
        return Charge(owner, work, expected, prompt)

    def undo(self, charge: Charge) -> None:
        """The job was not taken: nobody has charged it."""
        self.account(charge.owner).owed += charge.work - charge.expected

    def settle(self, charge: Charge, worked: float, answer: int | None = None) -> None:
        """The job has ended after so many tokens. `answer`: of them, those of the answer; None if it never ran."""
        account = self.account(charge.owner)
        account.owed += worked - charge.expected
        if answer is not None:
            account.learn(answer)
            self._everybody.learn(answer)

    def close(self, charge: Charge, stream: Stream) -> None:
        """Settles what the stream's job has cost until its end, or until its reader left."""
        if not stream.started:
            self.settle(charge, 0.0)
            return
        prompt, answer = charge.prompt, stream.tokens
        if isinstance(stream.end, Finished):
            prompt, answer = stream.end.prompt_tokens or prompt, stream.end.completion_tokens
        before = len(stream.job.delivered_ids)  # another process's job has worked them
        self.settle(charge, prompt + answer - before, answer)


def prompt_tokens(job: Job) -> float:
    """An estimate of the tokens of the job's prompt, at least 1."""
    characters = len(job.prompt or "") + sum(len(turn.content) for turn in job.messages or ())
    return max(1.0, characters / CHARACTERS_A_TOKEN)

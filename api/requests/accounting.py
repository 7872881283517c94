"""Token accounting: what a job costs, so that users share by tokens and not by number of requests.

An answer's length is known only at its end. So a job is charged its expected cost, and the error of
the expectation is added to the user's next job: in the long run, the costs equal the tokens used.
(As in Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, with predicted lengths)
"""

from collections import OrderedDict
from dataclasses import dataclass

from broker.stream import Stream
from broker.wire import Finished, Job, JobClass, Pooling

CHARACTERS_A_TOKEN = 4  # roughly, in English text
UNKNOWN_ANSWER = 256  # tokens expected of the very first answer
WINDOW = 20  # the mean follows about so many of the latest answers
LEAST_COST = 1.0  # token: every job counts
MOST_ACCOUNTS = 10_000

Owner = tuple[str, JobClass]  # the queue is fair between users inside a class


@dataclass(slots=True)
class Account:
    """One user's jobs of one class."""

    deficit: float = 0.0  # tokens used and not charged; negative: charged and not used
    mean: float = float(UNKNOWN_ANSWER)  # tokens of an answer
    answers: int = 0  # in the mean, up to WINDOW

    def learn(self, answer: int) -> None:
        """Adds an answer of so many tokens to the mean."""
        self.answers = min(self.answers + 1, WINDOW)
        self.mean += (answer - self.mean) / self.answers


@dataclass(frozen=True, slots=True)
class Charge:
    """What a job was charged: its `expected` tokens plus the user's deficit make its `cost`.

    `prompt`: the prompt's part of the expected tokens.
    """

    owner: Owner
    cost: float
    expected: float
    prompt: float


class TokenAccounting:
    """The accounts of the users seen lately.

    Invariant, for each account: costs + deficit = tokens used by the jobs that have ended + tokens
    expected of those that have not.
    """

    def __init__(self, most: int = MOST_ACCOUNTS) -> None:
        self._most = most
        self._accounts: OrderedDict[Owner, Account] = OrderedDict()  # least recently used first
        self._everybody = Account()  # what is expected of a user's first answer

    def account(self, owner: Owner) -> Account:
        """The user's account; a new one replaces the least recently used."""
        account = self._accounts.setdefault(owner, Account())
        self._accounts.move_to_end(owner)
        if len(self._accounts) > self._most:
            self._accounts.popitem(last=False)
        return account

    def charge(self, job: Job) -> Charge:
        """Charges the job and its user's deficit; what LEAST_COST adds reduces the deficit."""
        owner = (job.user, job.job_class)
        account = self.account(owner)
        answer = account.mean if account.answers else self._everybody.mean
        limit = job.sampling.max_tokens
        if job.pooling is not None:
            answer = 0.0
        if limit is not None:
            answer = min(answer, limit)
        prompt = prompt_tokens(job)
        expected = prompt + answer
        cost = max(LEAST_COST, expected + account.deficit)
        account.deficit -= cost - expected
        return Charge(owner, cost, expected, prompt)

    def refund(self, charge: Charge) -> None:
        """Takes back the charge of a job that the broker refused."""
        self.account(charge.owner).deficit += charge.cost - charge.expected

    def settle(self, charge: Charge, used: float, answer: int | None = None) -> None:
        """The job has ended after `used` tokens, `answer` of them its answer's; None: never ran."""
        account = self.account(charge.owner)
        account.deficit += used - charge.expected
        if answer is not None:
            account.learn(answer)
            self._everybody.learn(answer)

    def close(self, charge: Charge, stream: Stream) -> None:
        """Settles what the stream's job has used until its end, or until its reader left."""
        if not stream.started:
            self.settle(charge, 0.0)
            return
        prompt, answer = charge.prompt, stream.tokens
        if isinstance(stream.end, Finished):
            prompt, answer = stream.end.prompt_tokens or prompt, stream.end.completion_tokens
        if stream.job.pooling is not None:  # says nothing of how long answers are
            self.settle(charge, prompt)
            return
        before = len(stream.job.delivered_ids)  # of the answer, by another process's job
        self.settle(charge, prompt + answer - before, answer)


def prompt_tokens(job: Job) -> float:
    """An estimate of the tokens of the job's prompt, or of its inputs; at least 1."""
    if job.pooling is not None:
        return _input_tokens(job.pooling)
    characters = len(job.prompt or "") + sum(len(turn.content) for turn in job.messages or ())
    characters += sum(len(tool.description) + len(tool.parameters) for tool in job.tools)
    return max(1.0, len(job.prompt_ids) + characters / CHARACTERS_A_TOKEN)


def _input_tokens(pooling: Pooling) -> float:
    """Each input is read together with a query, if there are any."""
    tokens = 0.0
    for text in pooling.inputs:
        tokens += len(text) / CHARACTERS_A_TOKEN if isinstance(text, str) else len(text)
    query = sum(map(len, pooling.queries)) / CHARACTERS_A_TOKEN
    if len(pooling.queries) == 1:
        query *= len(pooling.inputs)
    return max(1.0, tokens + query)

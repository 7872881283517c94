"""Two answers to one question, beside each other."""

import httpx

from tests.unit.api_site import FakeClient, beginning
from tests.unit.dialogues import ask, begin, conversation, finished


async def test_two_answers_to_one_question_at_once_and_no_more(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await conversation(member)
    _, earlier = await ask(member, home, "one")
    fake.script = lambda job: []
    turn = (await member.post(f"{home}/messages", json={"content": "two"})).json()
    answer = turn["assistant_message"]
    again = f"{home}/messages/{answer['id']}/regenerate"
    assert (await member.post(again, json={})).status_code == 201
    for path, body in [
        (again, {}),
        (f"{home}/messages/{earlier['id']}/regenerate", {}),
        (f"{home}/messages", {"content": "three"}),
    ]:
        refused = await member.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "answer_in_progress")


async def test_an_answer_beside_another_one_until_one_is_kept(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await conversation(member)
    question, left = await ask(member, home, "one")
    beside = {"model": "big", "beside": True}
    turn = await member.post(f"{home}/messages/{left['id']}/regenerate", json=beside)
    assert turn.status_code == 201, turn.text
    _, right = await finished(member, home, turn.json())
    assert (right["beside"], right["parent"]) == (left["id"], question["id"])
    stored = (await member.get(home)).json()
    assert stored["head"] == left["id"]
    version = stored["version"]

    two, _ = await ask(member, home, "two", head=left["id"])  # whoever writes on has the left one
    assert two["parent"] == left["id"]
    head = (await member.get(home)).json()["head"]
    shown = await member.patch(home, json={"head": question["id"]})
    assert shown.json()["head"] == head  # the branch goes on below the left one, not the newer
    await member.patch(home, json={"head": right["id"]})
    stored = (await member.get(home)).json()
    assert (stored["head"], stored["version"] != version) == (right["id"], True)
    assert [message["beside"] for message in stored["messages"]] == [None] * 5


async def test_keeping_the_first_answer_is_a_change_too(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await conversation(member)
    question, left = await ask(member, home, "one")
    path = f"{home}/messages/{left['id']}/regenerate"
    turn = (await member.post(path, json={"beside": True})).json()
    await finished(member, home, turn)
    stored = (await member.get(home)).json()
    shown = await member.patch(home, json={"head": question["id"]})
    assert shown.json()["head"] == left["id"]  # the newest leaf, but not the one beside it
    await member.patch(home, json={"head": left["id"]})
    kept = (await member.get(home)).json()
    assert (kept["head"], kept["version"] != stored["version"]) == (left["id"], True)
    refused = await member.post(
        f"{home}/messages/{question['id']}/regenerate", json={"beside": True}
    )
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "beside")


async def test_both_answers_go_on_after_a_stop(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = beginning("one")
    home, left = await begin(member, "one two")
    path = f"{home}/messages/{left['id']}"
    turn = await member.post(f"{path}/regenerate", json={"beside": True})
    right = turn.json()["assistant_message"]
    for answer in (left, right):
        await member.post(f"{home}/messages/{answer['id']}/stop")
    for answer in (right, left):
        again = await member.post(f"{home}/messages/{answer['id']}/continue")
        assert again.status_code == 201, again.text
    assert (await member.get(home)).json()["head"] == left["id"]
